#pragma once

#include <cstdint>

#include "ops/activation.h"
#include "ops/linear.h"
#include "support/cuda/stream.h"
#include "support/dtype.h"

namespace dlf::cuda {

// y is [rows, y_stride], of dtype or float32.
struct LinearArgs : ops::LinearProduct {
  const void* x;  // [rows, in], of dtype
  int y_stride;
  bool y_float;  // y is float32 whatever dtype is
  // [rows], -1: the row is neither read nor written; or null. The kernel before must not write it.
  const int32_t* position;
  DType dtype;
  int gated = 0;  // if not 0: y has this many channels, each activation(channel c) * channel up_offset + c
  int up_offset = 0;
  ops::Activation activation = ops::Activation::silu;
};

inline constexpr int kLinearRows = 8;            // rows that share one reading of a weight
inline constexpr int kQuantizedLinearRows = 64;  // up to this, dequantizing for the matrix library costs more

// Whether linear() suits this product; the matrix library is better for many rows.
bool linear_serves(const LinearArgs& args);

// Whether linear() can apply the activation too (`gated`), which saves a kernel and is bit-identical.
bool linear_gates(const LinearArgs& args);

// Multiplies the few rows of a decode step; reading W once bounds the time. Reads no weights if no row is active.
void linear(const LinearArgs& args, Stream stream);

// linear() with weights that go from memory to registers: for small and quantized matrices, and for devices before
// sm_90. Takes float16 or bfloat16 activations, `in` a multiple of 8.
void linear_direct(const LinearArgs& args, Stream stream);

// Writes tiles as a matrix [out, in] of dtype.
void dequantize(const ops::Matrix& weight, void* y, DType dtype, Stream stream);

}  // namespace dlf::cuda
