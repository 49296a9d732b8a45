#include "engine/cpu/hook_rows.h"

#include <ATen/ops/from_blob.h>
#include <ATen/ops/stack.h>

namespace dlf::cpu {
namespace {

// Logits of a lane, cut to the common vocabulary: a view if its rows lie evenly, else a copy.
at::Tensor logits_of_lane(const FusionPlan& plan, std::span<Model> models, const Sequence& sequence, int64_t lane) {
  const int64_t count = sequence.draft.size + 1;
  std::vector<const float*> rows;
  for (int64_t position = 0; position < count; ++position) {
    rows.push_back(logits_of(plan, models, sequence.lanes, lane, position));
  }
  if (rows.back() == nullptr) {
    return {};
  }
  // Torch has no read-only tensors; the hook is told not to write.
  const auto tensor = [&](const float* data, int64_t length, int64_t stride) {
    return at::from_blob(const_cast<float*>(data), {length, plan.vocab}, {stride, 1}, at::kFloat);
  };
  const int64_t stride = count > 1 ? rows[1] - rows[0] : plan.vocab;
  bool even = stride > 0;
  for (int64_t position = 1; position < count; ++position) {
    even = even && rows[position] - rows[position - 1] == stride;
  }
  if (even) {
    return tensor(rows[0], count, stride);
  }
  std::vector<at::Tensor> copies;
  for (const float* row : rows) {
    copies.push_back(tensor(row, 1, plan.vocab).select(0, 0));
  }
  return at::stack(copies);
}

}  // namespace

HookRows hook_rows(const FusionPlan& plan, std::span<Model> models, const Sequence& sequence, FusionResult* fused,
                   int64_t stride) {
  HookRows rows;
  rows.request = sequence.request;
  rows.step = sequence.new_tokens;
  rows.large = logits_of_lane(plan, models, sequence, 0);
  for (const int expert : sequence.experts) {
    const ExpertLanes& lanes = plan.experts[expert];
    rows.experts.push_back(logits_of_lane(plan, models, sequence, lanes.expert));
    rows.bases.push_back(lanes.base == kNoLane ? at::Tensor() : logits_of_lane(plan, models, sequence, lanes.base));
  }
  const int64_t count = sequence.draft.size + 1;
  const auto experts = static_cast<int64_t>(sequence.experts.size());
  if (fused == nullptr) {
    rows.fused = rows.large;
    return rows;
  }
  constexpr int64_t kResult = sizeof(FusionResult) / sizeof(double);
  static_assert(sizeof(FusionResult) % sizeof(double) == 0);
  rows.fused = at::from_blob(fused->logits, {count, plan.vocab}, at::kFloat);
  rows.alpha = at::from_blob(fused->alpha, {count, experts}, {stride, 1}, at::kDouble);
  rows.f = at::from_blob(&fused->f, {count}, {kResult}, at::kDouble);
  rows.g = at::from_blob(&fused->g, {count}, {kResult}, at::kDouble);
  return rows;
}

}  // namespace dlf::cpu
