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

// Where `count` rows of a request are, from `first` on.
struct HookPlace {
  const FusionPlan& plan;
  std::span<const int> experts;
  int device;
  FusedRows fused;
  int64_t first;
  int64_t count;
};

// Shows the hook the rows as tensors in device memory: logits(lane) has the rows of a lane. Returns what the hook
// returns. The caller has set the stream.
bool show_rows(const CallHook& hook, HookRows rows, const HookPlace& place,
               const std::function<Logits(int64_t lane)>& logits);

}  // namespace dlf::cuda
