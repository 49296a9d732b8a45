#include "engine/draft.h"

#include <algorithm>

namespace dlf {
namespace {

constexpr std::array kBounds = {0.3, 0.5, 0.7, 0.85, 0.95, 0.99, 0.999};
static_assert(kBounds.size() + 1 == Acceptance::kBins);

constexpr double kEveryonesMemory = 1024;  // tokens in the running averages over all sequences
constexpr double kExpectation = 4;         // weight of the other sequences' rate, in tokens

}  // namespace

int Acceptance::bin_of(double probability) {
  return static_cast<int>(std::upper_bound(kBounds.begin(), kBounds.end(), probability) - kBounds.begin());
}

void Acceptance::add(int bin, bool accepted) {
  for (Count* count : {&bins_[bin], &total_}) {
    count->accepted = count->accepted * keep_ + (accepted ? 1 : 0);
    count->all = count->all * keep_ + 1;
  }
}

// The prior: a drafter is right about as often as it is sure to be.
double Acceptance::own_rate(int bin) const { return bins_[bin].rate((bin + 1.0) / (kBins + 1), 1); }

double Acceptance::rate(int bin, const Acceptance& others) const {
  return bins_[bin].rate(others.own_rate(bin), kExpectation);
}

double Acceptance::mean(const Acceptance& others) const { return total_.rate(others.own_mean(), kExpectation); }

DraftRates::DraftRates(const FusionPlan& plan)
    : plan_(plan), all_(plan.lane_model.size() + 1, Acceptance(kEveryonesMemory)) {}

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
