#include "engine/cpu/hook_rows.h"

#include <ATen/ops/from_blob.h>
#include <ATen/ops/stack.h>

#include <algorithm>

namespace dlf::cpu {

at::Tensor as_tensor(std::span<const float* const> rows, int64_t vocab) {
  if (std::find(rows.begin(), rows.end(), nullptr) != rows.end()) {
    return {};
  }
  const auto count = static_cast<int64_t>(rows.size());
  const int64_t stride = count > 1 ? rows[1] - rows[0] : vocab;
  bool even = stride > 0;
  for (int64_t i = 1; i < count; ++i) {
    even = even && rows[i] - rows[i - 1] == stride;
  }
  // Torch has no read-only tensors; the hook is told not to write.
  const auto view = [&](const float* data, at::IntArrayRef sizes, at::IntArrayRef strides) {
    return at::from_blob(const_cast<float*>(data), sizes, strides, at::kFloat);
  };
  if (even) {
    return view(rows[0], {count, vocab}, {stride, 1});
  }
  std::vector<at::Tensor> each;
  for (const float* row : rows) {
    each.push_back(view(row, {vocab}, {1}));
  }
  return at::stack(each);
}

void add_results(const HookPlace& place, HookRows& rows) {
  if (place.fused == nullptr) {
    rows.fused = rows.large;
    return;
  }
  const int64_t count = place.count;
  const auto experts = static_cast<int64_t>(place.experts.size());
  const auto weights = static_cast<int64_t>(place.plan.experts.size());  // from one position to the next
  constexpr int64_t kResult = sizeof(FusionResult) / sizeof(double);
  static_assert(sizeof(FusionResult) % sizeof(double) == 0);
  rows.fused = at::from_blob(place.fused->logits, {count, place.plan.vocab}, at::kFloat);
  rows.alpha = at::from_blob(place.fused->alpha, {count, experts}, {weights, 1}, at::kDouble);
  rows.f = at::from_blob(&place.fused->f, {count}, {kResult}, at::kDouble);
  rows.g = at::from_blob(&place.fused->g, {count}, {kResult}, at::kDouble);
}

}  // namespace dlf::cpu
