#pragma once

#include <algorithm>
#include <cstdint>
#include <memory>
#include <vector>

#include "engine/token_map.h"
#include "model/adapter.h"
#include "model/weights.h"

namespace dlf {

using Models = std::vector<std::shared_ptr<const Weights>>;
using Adapters = std::vector<std::vector<std::shared_ptr<const Adapter>>>;  // of each model; empty if there are none

inline constexpr int64_t kNoLane = -1;

// Lanes of an expert and of its base. Each may be the large model's: it is contrasted with the other.
struct ExpertLanes {
  int64_t expert;
  int64_t base;  // kNoLane: the expert is measured against the uniform distribution
};

// Lanes of each sequence, and which of them are experts and bases. Lane 0 is the large model's.
struct FusionPlan {
  std::vector<int64_t> lane_model;    // the model (unique Weights) of each lane
  std::vector<int64_t> lane_adapter;  // the adapter of each lane among its model's, -1: none; empty if no lane has one
  std::vector<ExpertLanes> experts;   // none: the large model decodes alone
  int64_t vocab = 0;                  // ids of the large model that are used; further logits are padding
  int64_t drafter = -1;               // a lane that is not fused and only drafts; -1: none
  std::vector<TokenMap> token_maps = {};  // of each model; empty if all have the large model's ids

  int64_t lanes() const { return static_cast<int64_t>(lane_model.size()); }
  int64_t lanes_of(int64_t model) const { return std::count(lane_model.begin(), lane_model.end(), model); }
  // Index of a lane among those of its model.
  int64_t index_of(int64_t lane) const {
    return std::count(lane_model.begin(), lane_model.begin() + lane, lane_model[lane]);
  }
  int64_t large_model() const { return lane_model.at(0); }
  bool has_large(int64_t lane) const { return lane_model[lane] == large_model(); }
  // A lane of an expert on a smaller model than the large one, or kNoLane.
  int64_t small_lane(const ExpertLanes& lanes) const {
    if (!has_large(lanes.expert)) {
      return lanes.expert;
    }
    return lanes.base != kNoLane && !has_large(lanes.base) ? lanes.base : kNoLane;
  }
  bool maps(int64_t model) const { return !token_maps.empty() && !token_maps[model].empty(); }
  const TokenMap& map_of(int64_t model) const {
    static const TokenMap same = {};
    return maps(model) ? token_maps[model] : same;
  }
  bool lacks_base() const {
    return std::any_of(experts.begin(), experts.end(), [](const ExpertLanes& one) { return one.base == kNoLane; });
  }
  int64_t adapter_of(int64_t lane) const { return lane_adapter.empty() ? -1 : lane_adapter[lane]; }
  // Slot in the model's cache for a lane of the sequence in `slot`.
  int64_t cache_slot(int64_t slot, int64_t lane) const { return slot * lanes_of(lane_model[lane]) + index_of(lane); }
};

std::vector<int64_t> vocab_sizes(const Models& models);

// Throws a ValueError or IndexError for a plan that these models cannot run.
void check_plan(const FusionPlan& plan, const Models& models, const Adapters& adapters);

}  // namespace dlf
