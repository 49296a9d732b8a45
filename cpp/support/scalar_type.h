#pragma once

#include <c10/core/ScalarType.h>

#include "support/dtype.h"

namespace dlf {

// torch's name for a type.
constexpr at::ScalarType scalar_type(DType dtype) {
  switch (dtype) {
    case DType::float32:
      return at::kFloat;
    case DType::bfloat16:
      return at::kBFloat16;
    default:
      return at::kHalf;
  }
}

}  // namespace dlf
