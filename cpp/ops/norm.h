#pragma once

#include <cstdint>

#include "support/dtype.h"

namespace dlf::ops {

// RMSNorm: x / sqrt(mean(x^2) + epsilon) * weight (Zhang and Sennrich, arXiv 1910.07467).
// LayerNorm: (x - mean(x)) / sqrt(variance(x) + epsilon) * weight + bias (Ba et al., arXiv 1607.06450).
enum class NormKind : int8_t { rms, layer };

// A norm of rows [rows, size]; without a weight it leaves them as they are.
struct NormOf {
  const float* weight;  // [size], or null
  float epsilon;
  NormKind kind = NormKind::rms;
  const float* bias = nullptr;  // [size], or null
};

// y = norm(x). Activations are of dtype, which on the CPU is always float32.
struct NormArgs {
  float* x;            // [rows, size]
  const void* branch;  // [rows, size], activations: added to x first, times branch_scale, and written back; or null
  void* y;             // [rows, size], activations; may be x if they are float32
  int rows;
  int size;
  NormOf norm;
  DType dtype;
  float branch_scale = 1.0F;
};

// x += scale * norm(branch).
struct AddNormArgs {
  float* x;            // [rows, size]
  const void* branch;  // [rows, size], activations
  int rows;
  int size;
  NormOf norm;
  float scale;
  DType dtype;
};

}  // namespace dlf::ops
