#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <vector>

#include "engine/drafting/acceptance.h"
#include "engine/drafting/prompt_lookup.h"
#include "engine/drafting/speculation.h"
#include "engine/plan.h"

namespace dlf {

// What one sequence drafts, and what it knows of its drafters.
struct Draft {
  static constexpr double kMemory = 64;        // tokens that count for its rates
  static constexpr double kWeightMemory = 16;  // and for its weights

  Draft() = default;
  Draft(const Speculation& speculation, size_t experts, const FusionPlan& plan)
      : options(speculation), weight(experts), acceptance(plan.lanes() + 1, Acceptance(kMemory)) {
    bins.reserve(options.max_draft);
  }

  Speculation options;
  std::vector<double> weight;          // of each expert of the request: |α|, lately
  std::vector<Acceptance> acceptance;  // of each lane of the plan, then of prompt lookup

  // In this step.
  int64_t drafter = kAutoDrafter;  // a lane, or kPromptLookup
  PromptLookup::Match match;       // what prompt lookup would draft
  int64_t size = 0;                // tokens
  int64_t limit = 0;               // tokens that there is room for
  double reach = 1;                // the expected probability that all of them are accepted
  std::vector<int> bins;           // of each, how sure the drafter was (Acceptance::bin_of)

  int64_t idle = 0;  // steps in a row without a draft

  // The weights that a token came with.
  void add_weights(const std::vector<double>& alpha) {
    for (size_t t = 0; t < weight.size(); ++t) {
      weight[t] += (std::abs(alpha[t]) - weight[t]) / kWeightMemory;
    }
  }

  // What drafts a request with these of the plan's experts: a lane, or kPromptLookup where there is none.
  int64_t wanted_drafter(const FusionPlan& plan, const std::vector<int>& experts) const {
    if (options.drafter != kAutoDrafter) {
      return options.drafter;
    }
    if (plan.drafter >= 0) {
      return plan.drafter;
    }
    if (weight.empty()) {
      return kPromptLookup;
    }
    const auto most = std::max_element(weight.begin(), weight.end()) - weight.begin();
    return plan.experts[experts[most]].expert;
  }
};

}  // namespace dlf
