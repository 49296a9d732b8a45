#pragma once

#include "ops/matrix.h"

namespace dlf::ops {

// The product of a linear layer, y = x W^T + bias, as all backends share it. A row's result does not depend on the
// other rows (its sums run in one fixed order), so a sequence decodes to the same tokens in any batch.
//
// Each backend adds x in its own form: the CPU rounds or quantizes it once for all products of it (cpu/linear.h), the
// GPU's kernels read activations as they are (cuda/linear.h).
struct LinearProduct {
  Matrix weight;      // [out, in]
  const float* bias;  // [out], or null
  void* y;            // rows of [out]
  int rows;
};

}  // namespace dlf::ops
