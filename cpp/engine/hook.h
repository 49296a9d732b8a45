#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <functional>
#include <span>
#include <vector>

#include "engine/plan.h"

namespace dlf {

// Logits of a request's positions in a step, B rows: after its last token, then after each drafted one. The tensors are
// views where the step has them, and valid while the hook runs. The hook may change the last four: the next tokens are
// drawn from `fused`.
struct HookRows {
  int64_t request = 0;
  int64_t step = 0;                 // tokens that were decoded before the first row
  std::vector<int64_t> tokens;      // [B], the token before each row; empty for positions that are scored
  at::Tensor large;                 // [B, V]
  std::vector<at::Tensor> experts;  // T of [B, V]; undefined where a closed gate held the model back
  std::vector<at::Tensor> bases;    // T of [B, V]; undefined for an expert without a base
  at::Tensor fused;                 // [B, V], by the request's rule
  at::Tensor alpha;                 // [B, T]
  at::Tensor f, g;                  // [B]
};

// Collects the logits of the large model and of the experts; tensor(lane) returns those of a lane.
template <typename LaneTensor>
void add_lanes(HookRows& rows, const FusionPlan& plan, std::span<const int> experts, LaneTensor&& tensor) {
  rows.large = tensor(0);
  for (const int expert : experts) {
    const ExpertLanes& lanes = plan.experts[expert];
    rows.experts.push_back(tensor(lanes.expert));
    rows.bases.push_back(lanes.base == kNoLane ? at::Tensor() : tensor(lanes.base));
  }
}

// Shows the caller the logits of a request; returns false if the request is to fail.
using CallHook = std::function<bool(const HookRows&)>;

}  // namespace dlf
