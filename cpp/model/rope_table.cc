#include "model/rope_table.h"

#include <ATen/ops/empty.h>

#include <cmath>

namespace dlf {

RopeTable::RopeTable(const RopeSpec& rope, int64_t max_context) {
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
}

}  // namespace dlf
