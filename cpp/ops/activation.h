#pragma once

#include <cstdint>

#include "support/dtype.h"

namespace dlf::ops {

// gelu is exact, with erf; gelu_tanh its approximation (Hendrycks and Gimpel, arXiv 1606.08415).
enum class Activation : int8_t { silu, gelu, gelu_tanh };

// SwiGLU: y = gate * sigmoid(gate) * up (Shazeer, arXiv 2002.05202). All are activations of dtype, which on the CPU is
// always float32.
struct SwiGluArgs {
  const void* gate;  // [rows, stride]
  const void* up;    // [rows, stride]
  int stride;
  void* y;  // [rows, size]; may be gate if stride is size
  int rows;
  int size;
  DType dtype;
};

}  // namespace dlf::ops
