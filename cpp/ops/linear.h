#pragma once

#include "support/cpu_capability.h"
#include "support/dtype.h"
#include "support/thread_team.h"

namespace dlf::ops {

struct LinearArgs {
  const float* x;      // [rows, in]
  const void* weight;  // [out, in], of dtype
  const float* bias;   // [out], or null
  float* y;            // [rows, out]
  int64_t rows;
  int64_t in;
  int64_t out;
  DType dtype;
  bool accumulate;  // y += x W^T + bias instead of y =
};

// y = x W^T + bias for the few rows of a decode step: bound by reading W once. A row's result does not depend on the
// other rows (its sums run in one fixed order), so a sequence decodes to the same tokens in any batch.
void linear(const LinearArgs& args, ThreadTeam& team);

// The same product for the many rows of a prompt, by the matrix library that torch carries.
void linear_prefill(const LinearArgs& args, ThreadTeam& team);

// Output channels [begin, end) of linear.
DLF_CPU_KERNEL(linear_kernel, const LinearArgs& args, int64_t begin, int64_t end);

}  // namespace dlf::ops
