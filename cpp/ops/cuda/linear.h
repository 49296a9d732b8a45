#pragma once

#include <cstdint>

#include "ops/linear.h"
#include "support/cuda/stream.h"
#include "support/dtype.h"

namespace dlf::cuda {

// y is [rows, y_stride], of dtype or float32.
struct LinearArgs : ops::LinearProduct {
  const void* x;  // [rows, in], of dtype
  int y_stride;
  bool y_float;             // y is float32 whatever dtype is
  const int32_t* position;  // [rows], -1: the row is not read and not written; or null. Not by the kernel before
  DType dtype;
  int gated = 0;  // where not 0: y has so many channels, SwiGLU of channel c and channel up_offset + c
  int up_offset = 0;
};

inline constexpr int kLinearRows = 8;            // that read a weight together
inline constexpr int kQuantizedLinearRows = 64;  // up to here, dequantizing for the matrix library costs more

// Whether linear() is the way to this product; the matrix library is better for many rows.
bool linear_serves(const LinearArgs& args);

// Whether linear() can take the activation as well (`gated`): a kernel less, and the same result to the bit.
bool linear_gates(const LinearArgs& args);

// For the few rows of a decode step: bound by reading W once. Where no row is active, no weights are read.
void linear(const LinearArgs& args, Stream stream);

// linear() with weights that go from memory to registers, for devices before sm_90. float16 or bfloat16 activations,
// `in` a multiple of 8.
void linear_direct(const LinearArgs& args, Stream stream);

// The matrix [out, in] that int8 or int4 tiles stand for, in dtype.
void dequantize(const ops::Matrix& weight, void* y, DType dtype, Stream stream);

}  // namespace dlf::cuda
