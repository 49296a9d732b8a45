#pragma once

#include <cstdint>

#include "support/dtype.h"

namespace dlf::ops {

// RMSNorm: x / sqrt(mean(x^2) + epsilon) * weight (Zhang and Sennrich, arXiv 1910.07467).
// LayerNorm: (x - mean(x)) / sqrt(variance(x) + epsilon) * weight + bias (Ba et al., arXiv 1607.06450).
enum class NormKind : int8_t { rms, layer };

// y = norm(x), or x itself if weight is null. Activations are of dtype, which on the CPU is always float32.
struct NormArgs {
  float* x;             // [rows, size]
  const void* branch;   // [rows, size], activations: added to x first, times branch_scale, and written back; or null
  const float* weight;  // [size]
  void* y;              // [rows, size], activations; may be x if they are float32
  int rows;
  int size;
  float epsilon;
  DType dtype;
  NormKind kind = NormKind::rms;
  const float* bias = nullptr;  // [size], or null
  float branch_scale = 1.0F;
};

}  // namespace dlf::ops
