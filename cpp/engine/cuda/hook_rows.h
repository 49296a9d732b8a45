#pragma once

#include <cstdint>
#include <functional>
#include <span>

#include "engine/cuda/device_models.h"
#include "engine/hook.h"
#include "engine/plan.h"
#include "fusion/cuda/solver.h"

namespace dlf::cuda {

// Where the fused logits and records of the rows are; both null without experts.
struct FusedRows {
  float* logits;
  int64_t stride;
  FusionRecord* records;
};

// Shows the hook `count` rows from `first` on, as tensors in device memory: logits(lane) has the rows of a lane.
// Returns what the hook returns. The caller has set the stream.
bool show_rows(const CallHook& hook, HookRows rows, std::span<const int> experts, const FusionPlan& plan, int device,
               const FusedRows& fused, int64_t first, int64_t count, const std::function<Logits(int64_t lane)>& logits);

}  // namespace dlf::cuda
