#pragma once

#include "support/cuda/stream.h"
#include "support/dtype.h"

namespace dlf::cuda {

struct NormArgs {
  float* hidden;        // [rows, size]
  const void* branch;   // [rows, size], of dtype: added to hidden, which is written back; or null
  const float* weight;  // [size]
  void* y;              // [rows, size], of dtype
  int rows;
  int size;
  float epsilon;
  DType dtype;
};

// hidden += branch, and RMSNorm: y = hidden / sqrt(mean(hidden^2) + epsilon) * weight (Zhang and Sennrich,
// arXiv 1910.07467).
void rms_norm(const NormArgs& args, Stream stream);

}  // namespace dlf::cuda
