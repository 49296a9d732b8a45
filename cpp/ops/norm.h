#pragma once

#include "support/dtype.h"

namespace dlf::ops {

// RMSNorm: y = x / sqrt(mean(x^2) + epsilon) * weight (Zhang and Sennrich, arXiv 1910.07467). Activations are of dtype,
// which on the CPU is always float32.
struct NormArgs {
  float* x;             // [rows, size]
  const void* branch;   // [rows, size], activations: added to x first, which is written back; or null
  const float* weight;  // [size]
  void* y;              // [rows, size], activations; may be x if they are float32
  int rows;
  int size;
  float epsilon;
  DType dtype;
};

}  // namespace dlf::ops
