#include "engine/cuda/hook_rows.h"

#include <ATen/ops/from_blob.h>
#include <ATen/ops/tensor.h>

#include <vector>

namespace dlf::cuda {

bool show_rows(const CallHook& hook, HookRows rows, const HookPlace& place,
               const std::function<Logits(int64_t lane)>& logits) {
  const auto& [plan, experts, device, fused, first, count] = place;
  const at::TensorOptions floats = on_device(device).dtype(at::kFloat);
  // Torch has no read-only tensors; the hook is told not to write.
  const auto view = [&, first = first, count = count](const float* data, int64_t stride, int64_t width) {
    return at::from_blob(const_cast<float*>(data) + first * stride, {count, width}, {stride, 1}, floats);
  };
  const int64_t vocab = plan.vocab;
  add_lanes(rows, plan, experts, [&](int64_t lane) {
    const Logits of_lane = logits(lane);
    return view(of_lane.data, of_lane.stride, vocab);
  });
  rows.fused = fused.logits == nullptr ? rows.large : view(fused.logits, fused.stride, vocab);
  if (experts.empty()) {
    return hook(rows);
  }
  constexpr int64_t kRecord = sizeof(FusionRecord) / sizeof(float);
  static_assert(sizeof(FusionRecord) % sizeof(float) == 0);
  const at::Tensor all = view(fused.records->alpha, kRecord, static_cast<int64_t>(plan.experts.size()));
  const at::Tensor chosen = at::tensor(std::vector<int64_t>(experts.begin(), experts.end())).to(all.device());
  rows.alpha = all.index_select(1, chosen);
  rows.f = view(&fused.records->f, kRecord, 1).select(1, 0);
  rows.g = view(&fused.records->g, kRecord, 1).select(1, 0);
  const bool goes_on = hook(rows);
  at::Tensor(all).index_copy_(1, chosen, rows.alpha);
  return goes_on;
}

}  // namespace dlf::cuda
