#pragma once

#include <cstdint>
#include <vector>

#include "engine/drafting/acceptance.h"
#include "engine/drafting/draft.h"
#include "engine/plan.h"

namespace dlf {

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
