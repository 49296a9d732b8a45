#pragma once

#include "support/cpu_capability.h"
#include "support/thread_team.h"

namespace dlf::ops {

struct NormArgs {
  const float* x;       // [rows, size]
  const float* weight;  // [size]
  float* y;             // [rows, size]; may be x
  int64_t rows;
  int64_t size;
  float epsilon;
};

// RMSNorm: y = x / sqrt(mean(x^2) + epsilon) * weight (Zhang and Sennrich, arXiv 1910.07467).
void rms_norm(const NormArgs& args, ThreadTeam& team);

DLF_CPU_KERNEL(rms_norm_kernel, const NormArgs& args, int64_t begin, int64_t end);

}  // namespace dlf::ops
