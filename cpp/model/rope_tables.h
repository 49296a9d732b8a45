#pragma once

#include <ATen/core/Tensor.h>

#include "model/config.h"

namespace dlf {

// cos and sin of every rotation, float32 [max_context, head_dim / 2], times the config's scaling factor.
struct RopeTables {
  at::Tensor cos;
  at::Tensor sin;

  RopeTables(const ModelConfig& config, int64_t max_context);
};

}  // namespace dlf
