#pragma once

#include <ATen/core/Tensor.h>

#include "model/spec.h"

namespace dlf {

// cos and sin of every rotation, times the scaling: float32 [max_context, head_dim / 2].
struct RopeTable {
  at::Tensor cos;
  at::Tensor sin;

  RopeTable(const RopeSpec& rope, int64_t max_context);
};

}  // namespace dlf
