#include "engine/drafting/draft_rates.h"

namespace dlf {
namespace {

constexpr double kMemory = 1024;  // tokens of all sequences that count

}  // namespace

DraftRates::DraftRates(const FusionPlan& plan) : plan_(plan), all_(plan.lane_model.size() + 1, Acceptance(kMemory)) {}

double DraftRates::rate(const Draft& draft, int64_t drafter, int bin) const {
  return draft.acceptance[index(drafter)].rate(bin, all_[index(drafter)]);
}

double DraftRates::mean(const Draft& draft, int64_t drafter) const {
  return draft.acceptance[index(drafter)].mean(all_[index(drafter)]);
}

void DraftRates::learn(Draft& draft, int64_t drafter, int bin, bool accepted) {
  draft.acceptance[index(drafter)].add(bin, accepted);
  all_[index(drafter)].add(bin, accepted);
}

}  // namespace dlf
