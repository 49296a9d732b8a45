#include "model/rope_tables.h"

#include <ATen/ops/empty.h>

#include <cmath>

namespace dlf {

RopeTables::RopeTables(const ModelConfig& config, int64_t max_context) {
  const int64_t half = config.head_dim / 2;
  cos = at::empty({max_context, half}, at::kFloat);
  sin = at::empty({max_context, half}, at::kFloat);
  auto* cos_data = cos.mutable_data_ptr<float>();
  auto* sin_data = sin.mutable_data_ptr<float>();
  const auto factor = static_cast<float>(config.rope_scaling_factor);
  for (int64_t position = 0; position < max_context; ++position) {
    for (int64_t i = 0; i < half; ++i) {
      // The angle is rounded to float32, as transformers rounds it: at far positions it matters.
      const float angle = static_cast<float>(position) * config.inv_freq[i];
      cos_data[position * half + i] = std::cos(angle) * factor;
      sin_data[position * half + i] = std::sin(angle) * factor;
    }
  }
}

}  // namespace dlf
