#include "model/rope_table.h"

#include <ATen/ops/empty.h>

#include <cmath>

namespace dlf {

RopeTable::RopeTable(const RopeSpec& rope, int64_t max_context) : rotated(static_cast<int>(2 * rope.inv_freq.size())) {
  const std::vector<float>& inv_freq = rope.frequencies(max_context);
  const auto half = static_cast<int64_t>(inv_freq.size());
  cos = at::empty({max_context, half}, at::kFloat);
  sin = at::empty({max_context, half}, at::kFloat);
  auto* cos_data = cos.mutable_data_ptr<float>();
  auto* sin_data = sin.mutable_data_ptr<float>();
  const auto factor = static_cast<float>(rope.scaling);
  for (int64_t position = 0; position < max_context; ++position) {
    for (int64_t i = 0; i < half; ++i) {
      // The angle is rounded to float32, as in transformers: at far positions it matters.
      const float angle = static_cast<float>(position) * inv_freq[i];
      cos_data[position * half + i] = std::cos(angle) * factor;
      sin_data[position * half + i] = std::sin(angle) * factor;
    }
  }
  if (rope.query_beta != 0) {
    query_scale = at::empty({max_context}, at::kFloat);
    auto* scale_data = query_scale.mutable_data_ptr<float>();
    for (int64_t position = 0; position < max_context; ++position) {
      const int64_t stretches = position / rope.query_positions;
      scale_data[position] =
          1.0F + static_cast<float>(rope.query_beta) * std::log(1.0F + static_cast<float>(stretches));
    }
  }
}

}  // namespace dlf
