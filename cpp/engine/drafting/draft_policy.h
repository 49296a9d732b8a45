#pragma once

#include <array>
#include <cstdint>
#include <span>
#include <vector>

#include "engine/draft.h"
#include "engine/drafting/pass_times.h"
#include "engine/plan.h"
#include "engine/sequence.h"

namespace dlf {

// Decides what drafts a sequence, and how many tokens: those that give the most tokens a second.
//
// A step in which k tokens of each sequence are drafted takes k passes of the drafter and one of every model over
// k + 1 rows, and gives 1 + a + ... + a^k tokens of a sequence whose drafts are accepted with probability a (Leviathan
// et al., arXiv 2211.17192, section 3.5, with measured times in place of counts). The best k gives the reachable tokens
// a second. One more token is drafted while its expected gain, known from how sure the drafter was of those before it,
// exceeds what its time gives at that rate.
class DraftPolicy {
 public:
  DraftPolicy(const FusionPlan& plan, std::vector<const PassTimes*> times);

  // Chooses the drafter of each sequence that may be drafted (Draft::limit), and estimates the time of a step of all.
  void begin(std::span<Sequence* const> sequences);

  // Whether to draft one more token of a sequence.
  bool worth_drafting(const Sequence& sequence) const;
  // The same for a token that is accepted with this probability.
  bool worth_drafting(const Sequence& sequence, double acceptance) const;

  DraftRates& rates() { return rates_; }
  const DraftRates& rates() const { return rates_; }

  // Lane that drafts a sequence unless prompt lookup does; -1: none.
  int64_t lane_of(const Sequence& sequence) const;

 private:
  using StepTimes = std::array<double, kMaxDraft + 1>;  // by the number of drafted tokens

  void count_rows(std::span<Sequence* const> sequences);
  void time_steps(int64_t drafter);
  double step_time(int64_t drafter, int64_t drafted) const;
  double tokens_per_second(const Sequence& sequence, int64_t drafter, double acceptance) const;

  const FusionPlan& plan_;
  std::vector<const PassTimes*> times_;  // of the models
  DraftRates rates_;
  std::vector<StepTimes> step_times_;   // by drafter
  std::vector<bool> timed_;             // whether step_times_ are those of this step
  std::vector<int64_t> rows_;           // of each model, without drafts
  std::vector<int64_t> drafting_rows_;  // of each model, of the sequences that may be drafted
  int64_t drafting_ = 0;                // sequences that may be drafted
  double tokens_per_second_ = 0;
};

}  // namespace dlf
