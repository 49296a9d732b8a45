#pragma once

#include <cstdint>
#include <vector>

#include "engine/acceptance.h"
#include "engine/prompt_lookup.h"
#include "engine/speculation.h"

namespace dlf {

// What one sequence drafts, and what it knows of its drafters.
struct Draft {
  static constexpr double kMemory = 64;  // tokens that count for its rates

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
};

}  // namespace dlf
