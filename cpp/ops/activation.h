#pragma once

#include <cstdint>

#include "support/dtype.h"

namespace dlf::ops {

// silu is x * sigmoid(x), gelu the exact one, with erf, gelu_tanh its approximation (Hendrycks and Gimpel,
// arXiv 1606.08415).
enum class Activation : int8_t { silu, gelu, gelu_tanh };

// y = activation(gate) * up (Shazeer, arXiv 2002.05202), or activation(up) where nothing is gated; then each row may be
// multiplied by the sigmoid of a number. All are activations of dtype, which on the CPU is always float32.
struct ActivationArgs {
  const void* gate;  // [rows, stride], or null
  const void* up;    // [rows, stride]
  int stride;
  void* y;  // [rows, size]; may be gate or up if stride is size
  int rows;
  int size;
  DType dtype;
  Activation activation = Activation::silu;
  const float* row_gate = nullptr;  // [rows]; or null
};

}  // namespace dlf::ops
