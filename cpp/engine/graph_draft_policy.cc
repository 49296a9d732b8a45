#include "engine/graph_draft_policy.h"

#include <algorithm>
#include <cmath>

namespace dlf {
namespace {

constexpr double kEveryonesMemory = 1024;  // tokens
constexpr int kTimeMemory = 32;            // steps
constexpr int kProbe = 64;                 // plain steps after which a short draft is tried
// Of a plain step: what a drafted token is thought to cost until that is seen. Little, so that it is tried.
constexpr double kTokenCost = 0.05;

}  // namespace

void GraphDraftPolicy::Time::add(double sample) {
  count = std::min(count + 1, kTimeMemory);
  seconds += ((count > 1 ? std::min(sample, 2 * seconds) : sample) - seconds) / count;
}

GraphDraftPolicy::GraphDraftPolicy(const FusionPlan& plan, const Limits& limits)
    : plan_(plan), limits_(limits), everyone_(plan.lane_model.size() + 1, Acceptance(kEveryonesMemory)) {}

StepDraft GraphDraftPolicy::choose(std::span<const Sequence> sequences, int batch) {
  const int64_t drafter = drafter_of_most(sequences);
  int64_t most = 0;  // tokens that some sequence may be drafted
  bool adaptive = true;
  for (const Sequence& sequence : sequences) {
    if (sequence.draft->limit > 0 && drafter_of(sequence) == drafter) {
      most = std::max(most, sequence.draft->limit);
      adaptive &= sequence.draft->options.adaptive;
    }
  }
  const int tokens_of_pass = adaptive ? limits_.exact_tokens : limits_.max_tokens;
  most = std::min<int64_t>({most, limits_.max_draft, tokens_of_pass / batch - 1});
  if (most <= 0) {
    return {};
  }
  const auto longest = static_cast<int>(most);
  if (!adaptive) {
    return {drafter, longest};
  }
  if (!times_.contains({batch, StepDraft()})) {
    return {};  // how long a plain one takes comes first
  }
  StepDraft best;
  double best_rate = tokens(sequences, best) / seconds(batch, best);
  for (int count = 1; count <= longest; count = 2 * count + 1) {
    const StepDraft draft = {drafter, count};
    const double rate = tokens(sequences, draft) / seconds(batch, draft);
    if (rate > best_rate) {
      best = draft;
      best_rate = rate;
    }
  }
  plain_steps_ = best.count == 0 ? plain_steps_ + 1 : 0;
  if (plain_steps_ >= kProbe) {
    plain_steps_ = 0;
    return {drafter, 1};
  }
  return best;
}

void GraphDraftPolicy::add_time(int batch, const StepDraft& draft, double seconds) {
  times_[{batch, draft}].add(seconds);
}

void GraphDraftPolicy::learn(Draft& draft, int64_t drafter, int64_t drafted, int64_t accepted) {
  for (Acceptance* acceptance : {&draft.acceptance[index(drafter)], &everyone_[index(drafter)]}) {
    for (int64_t i = 0; i < std::min(accepted + 1, drafted); ++i) {
      acceptance->add(0, i < accepted);
    }
  }
}

int64_t GraphDraftPolicy::drafter_of(const Sequence& sequence) const {
  return sequence.draft->wanted_drafter(plan_, *sequence.experts);
}

// The one that most sequences want.
int64_t GraphDraftPolicy::drafter_of_most(std::span<const Sequence> sequences) const {
  int64_t best = kAutoDrafter;
  int64_t best_count = 0;
  for (const Sequence& sequence : sequences) {
    const int64_t drafter = drafter_of(sequence);
    const int64_t count = std::count_if(sequences.begin(), sequences.end(), [&](const Sequence& other) {
      return other.draft->limit > 0 && drafter_of(other) == drafter;
    });
    if (count > best_count) {
      best = drafter;
      best_count = count;
    }
  }
  return best;
}

// That a step is expected to give.
double GraphDraftPolicy::tokens(std::span<const Sequence> sequences, const StepDraft& draft) const {
  double all = 0;
  for (const Sequence& sequence : sequences) {
    all += 1;
    if (draft.count == 0 || drafter_of(sequence) != draft.drafter) {
      continue;
    }
    const size_t at = index(draft.drafter);
    const double rate = sequence.draft->acceptance[at].mean(everyone_[at]);
    const auto count = std::min<int64_t>(draft.count, sequence.draft->limit);
    for (int64_t i = 1; i <= count; ++i) {
      all += std::pow(rate, static_cast<double>(i));
    }
  }
  return all;
}

double GraphDraftPolicy::seconds(int batch, const StepDraft& draft) const {
  const auto known = times_.find({batch, draft});
  if (known != times_.end()) {
    return known->second.seconds;
  }
  return times_.at({batch, StepDraft()}).seconds * (1 + kTokenCost * draft.count);
}

}  // namespace dlf
