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

// How often a drafter's tokens were right, by how sure it was of them: running averages.
class Acceptance {
 public:
  static constexpr int kBins = 8;

  // `memory`: tokens that the averages reach back.
  explicit Acceptance(double memory) : keep_(1 - 1 / memory) {}

  // Returns the bin of a token to which its drafter gave this probability.
  static int bin_of(double probability);

  void add(int bin, bool accepted);

  // Probability that a token of a bin, or any token, is accepted. The less a sequence has seen, the more the rates of
  // `others` count.
  double rate(int bin, const Acceptance& others) const;
  double mean(const Acceptance& others) const;

 private:
  struct Count {
    double accepted = 0;
    double all = 0;

    // Rate with a prior of `weight` tokens.
    double rate(double expected, double weight) const { return (accepted + weight * expected) / (all + weight); }
  };
  double own_rate(int bin) const;
  double own_mean() const { return total_.rate(0.6, 1); }

  double keep_;
  std::array<Count, kBins> bins_;
  Count total_;
};

// Draft of one sequence, and the rates of its drafters.
struct Draft {
  static constexpr double kMemory = 64;        // tokens in the averages of its rates
  static constexpr double kWeightMemory = 16;  // tokens in the averages of its weights

  Draft() = default;
  Draft(const Speculation& speculation, size_t experts, const FusionPlan& plan)
      : options(speculation), weight(experts), acceptance(plan.lanes() + 1, Acceptance(kMemory)) {
    bins.reserve(options.max_draft);
  }

  Speculation options;
  std::vector<double> weight;          // running average of |α| of each expert of the request
  std::vector<Acceptance> acceptance;  // of each lane of the plan, then of prompt lookup

  // Draft of this step.
  int64_t drafter = kAutoDrafter;  // a lane, or kPromptLookup
  PromptLookup::Match match;       // found by prompt lookup
  int64_t size = 0;                // tokens
  int64_t limit = 0;               // most tokens to draft
  double reach = 1;                // expected probability that all of them are accepted
  std::vector<int> bins;           // Acceptance::bin_of() of each token

  int64_t idle = 0;  // steps in a row without a draft

  // Adds the weights α of a chosen token.
  void add_weights(const std::vector<double>& alpha) {
    for (size_t t = 0; t < weight.size(); ++t) {
      weight[t] += (std::abs(alpha[t]) - weight[t]) / kWeightMemory;
    }
  }

  // Returns the drafter of a request that fuses `experts`: a lane, or kPromptLookup if it has none.
  int64_t wanted_drafter(const FusionPlan& plan, const std::vector<int>& experts) const {
    if (options.drafter != kAutoDrafter) {
      return options.drafter;
    }
    if (plan.drafter >= 0) {
      return plan.drafter;
    }
    int64_t found = kPromptLookup;
    double most = -1.0;
    for (size_t t = 0; t < weight.size(); ++t) {
      const int64_t lane = plan.small_lane(plan.experts[experts[t]]);
      if (lane != kNoLane && weight[t] > most) {
        most = weight[t];
        found = lane;
      }
    }
    return found;
  }
};

// How often drafters are right: in each sequence (Draft::acceptance), and in all of them together.
class DraftRates {
 public:
  explicit DraftRates(const FusionPlan& plan);

  // Probability that a sequence accepts a drafter's token of this bin, and any of its tokens.
  double rate(const Draft& draft, int64_t drafter, int bin) const;
  double mean(const Draft& draft, int64_t drafter) const;

  void learn(Draft& draft, int64_t drafter, int bin, bool accepted);
  // Adds a token that no sequence saw, as a prior.
  void expect(int64_t drafter, bool accepted) { all_[index(drafter)].add(0, accepted); }

  // Index of a lane or kPromptLookup in arrays that have an entry for each.
  size_t index(int64_t drafter) const { return drafter == kPromptLookup ? plan_.lane_model.size() : drafter; }

 private:
  const FusionPlan& plan_;
  std::vector<Acceptance> all_;
};

}  // namespace dlf
