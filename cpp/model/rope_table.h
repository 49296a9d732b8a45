#pragma once

#include <ATen/core/Tensor.h>

#include "model/spec.h"

namespace dlf {

struct RopeTable {
  at::Tensor cos;  // of every rotation, times the scaling: float32 [max_context, rotated / 2]
  at::Tensor sin;
  at::Tensor query_scale;  // float32 [max_context], or undefined
  int rotated;             // elements of a head

  RopeTable(const RopeSpec& rope, int64_t max_context);
};

}  // namespace dlf
