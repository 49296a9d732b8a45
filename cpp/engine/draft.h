#pragma once

#include <algorithm>
#include <array>
#include <cmath>
#include <cstdint>
#include <vector>

#include "engine/plan.h"
#include "engine/prompt_lookup.h"
#include "engine/request.h"

namespace dlf {

// How often what a drafter said was what came, by how sure it was: running rates that forget.
class Acceptance {
 public:
  static constexpr int kBins = 8;

  // `memory` is the number of tokens that count.
  explicit Acceptance(double memory) : keep_(1 - 1 / memory) {}

  // The bin of a token to which its drafter gave this probability.
  static int bin_of(double probability);

  void add(int bin, bool accepted);

  // The probability that a token of a bin is accepted, and that any token is. A sequence without experience expects
  // what `others` saw.
  double rate(int bin, const Acceptance& others) const;
  double mean(const Acceptance& others) const;

 private:
  struct Count {
    double accepted = 0;
    double all = 0;

    // With `weight` tokens' worth of an expectation.
    double rate(double expected, double weight) const { return (accepted + weight * expected) / (all + weight); }
  };
  double own_rate(int bin) const;
  double own_mean() const { return total_.rate(0.6, 1); }

  double keep_;
  std::array<Count, kBins> bins_;
  Count total_;
};

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

// How often drafters are right: what each sequence saw (Draft::acceptance), and what all of them saw.
class DraftRates {
 public:
  explicit DraftRates(const FusionPlan& plan);

  // The probability that a sequence accepts what a drafter is so sure of, and what it says on the whole.
  double rate(const Draft& draft, int64_t drafter, int bin) const;
  double mean(const Draft& draft, int64_t drafter) const;

  void learn(Draft& draft, int64_t drafter, int bin, bool accepted);
  // Counts as if some sequence had seen it.
  void expect(int64_t drafter, bool accepted) { all_[index(drafter)].add(0, accepted); }

  // Of a lane or kPromptLookup in arrays that have an entry for each.
  size_t index(int64_t drafter) const { return drafter == kPromptLookup ? plan_.lane_model.size() : drafter; }

 private:
  const FusionPlan& plan_;
  std::vector<Acceptance> all_;
};

}  // namespace dlf
