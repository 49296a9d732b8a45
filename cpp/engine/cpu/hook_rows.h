#pragma once

#include <cstdint>
#include <span>

#include "engine/hook.h"
#include "engine/plan.h"
#include "fusion/cpu/solver.h"

namespace dlf::cpu {

// Where the logits of `count` positions of a request are, and their results.
struct HookPlace {
  const FusionPlan& plan;
  std::span<const int> experts;
  int64_t count;
  FusionResult* fused;  // of the first position; null without experts
};

// Collects what a hook sees. logits(lane, position) returns logits, or null for a lane that was not read.
template <typename Logits>
HookRows hook_rows(const HookPlace& place, Logits&& logits);

// Logits of a lane, cut to `vocab`: a view if the rows lie evenly, else a copy; undefined if a row is null.
at::Tensor as_tensor(std::span<const float* const> rows, int64_t vocab);
void add_results(const HookPlace& place, HookRows& rows);

template <typename Logits>
HookRows hook_rows(const HookPlace& place, Logits&& logits) {
  const auto tensor = [&](int64_t lane) {
    std::vector<const float*> rows;
    rows.reserve(place.count);
    for (int64_t position = 0; position < place.count; ++position) {
      rows.push_back(logits(lane, position));
    }
    return as_tensor(rows, place.plan.vocab);
  };
  HookRows rows;
  add_lanes(rows, place.plan, place.experts, tensor);
  add_results(place, rows);
  return rows;
}

}  // namespace dlf::cpu
