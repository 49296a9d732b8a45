#pragma once

#include <algorithm>
#include <cstdint>
#include <memory>
#include <vector>

#include "model/adapter.h"
#include "model/weights.h"

namespace dlf {

using Models = std::vector<std::shared_ptr<const Weights>>;
using Adapters = std::vector<std::vector<std::shared_ptr<const Adapter>>>;  // of each model; empty where there are none

// An expert is measured against its base: both are lanes.
struct ExpertLanes {
  int64_t expert;
  int64_t base;
};

// Which lanes a sequence has, and which of them are experts and bases. Lanes are numbered; the large model is lane 0.
struct FusionPlan {
  std::vector<int64_t> lane_model;    // for each lane the model (unique Weights) that it runs on
  std::vector<int64_t> lane_adapter;  // and its adapter among those of the model, -1: none; empty where nobody has one
  std::vector<ExpertLanes> experts;   // none: the large model decodes alone
  int64_t vocab = 0;                  // ids that all models share; logits above it are padding
  int64_t drafter = -1;               // a lane that is not fused and only drafts; -1: none

  int64_t lanes() const { return static_cast<int64_t>(lane_model.size()); }
  int64_t lanes_of(int64_t model) const { return std::count(lane_model.begin(), lane_model.end(), model); }
  // Among the lanes of its model.
  int64_t index_of(int64_t lane) const {
    return std::count(lane_model.begin(), lane_model.begin() + lane, lane_model[lane]);
  }
  int64_t adapter_of(int64_t lane) const { return lane_adapter.empty() ? -1 : lane_adapter[lane]; }
  // Where a lane of the sequence in this slot lies in its model's cache.
  int64_t cache_slot(int64_t slot, int64_t lane) const { return slot * lanes_of(lane_model[lane]) + index_of(lane); }
};

std::vector<int64_t> vocab_sizes(const Models& models);

// Throws a ValueError or IndexError for a plan that these models cannot run.
void check_plan(const FusionPlan& plan, const Models& models, const Adapters& adapters);

}  // namespace dlf
