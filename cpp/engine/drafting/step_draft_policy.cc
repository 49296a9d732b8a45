#include "engine/drafting/step_draft_policy.h"

#include <algorithm>
#include <array>
#include <cmath>

namespace dlf {
namespace {

constexpr int kTimeMemory = 32;  // steps in a running mean
constexpr int kProbeSteps = 64;  // steps after which a lane that drafts nothing is tried
// Assumed cost of a drafted token, in plain steps, until it is measured: little, so that it is tried. A lane runs a
// pass for each token; prompt lookup adds a row to a pass that reads the weights anyway.
constexpr double kLaneCost = 0.2;
constexpr double kLookupCost = 0.01;
constexpr int kLookupDoubt = 8;  // tokens of its prior, a quarter of them right: not all text repeats itself
// Numbers of tokens that a step may draft. Each is a graph; among the large ones, one more or less changes little.
constexpr std::array kCounts = {1, 2, 3, 4, 5, 7};

// Returns the largest of kCounts up to `most`, or 0.
int rounded(int64_t most) {
  int count = 0;
  for (const int each : kCounts) {
    count = each <= most ? each : count;
  }
  return count;
}

}  // namespace

void StepDraftPolicy::Time::add(double sample) {
  count = std::min(count + 1, kTimeMemory);
  seconds += (sample - seconds) / count;
}

StepDraftPolicy::StepDraftPolicy(const FusionPlan& plan, const Limits& limits)
    : plan_(plan), limits_(limits), rates_(plan) {
  for (int i = 0; i < kLookupDoubt; ++i) {
    rates_.expect(kPromptLookup, i % 4 == 0);
  }
}

StepDraft StepDraftPolicy::choose(std::span<Sequence* const> sequences, int batch) {
  const int64_t drafter = drafter_of_most(sequences);
  int64_t most = 0;     // most tokens of a sequence that may be drafted now
  int64_t allowed = 0;  // and at any of its positions
  bool adaptive = true;
  bool looks_up = drafter == kPromptLookup;
  for (const Sequence* sequence : sequences) {
    if (sequence->draft.limit > 0 && drafter_of(*sequence) == drafter) {
      most = std::max(most, sequence->draft.limit);
      allowed = std::max(allowed, sequence->draft.options.max_draft);
      adaptive &= sequence->draft.options.adaptive;
      looks_up |= this->looks_up(*sequence);
    }
  }
  const int tokens_of_pass = adaptive ? limits_.exact_tokens : limits_.max_tokens;
  const auto room = std::min<int64_t>(limits_.max_draft, tokens_of_pass / batch - 1);
  most = std::min(most, room);
  if (most <= 0) {
    return {};
  }
  if (!adaptive) {
    return {drafter, static_cast<int>(most)};
  }
  if (!times_.contains({batch, StepDraft()})) {
    return {};  // a plain step is timed first
  }
  StepDraft best;
  double best_rate = tokens(sequences, best) / seconds(batch, best);
  const auto consider = [&](const StepDraft& draft) {
    const double rate = tokens(sequences, draft) / seconds(batch, draft);
    if (rate > best_rate) {
      best = draft;
      best_rate = rate;
    }
  };
  if (looks_up) {  // always in full: its tokens cost next to nothing, and shorter ends need no graph of their own
    consider({kPromptLookup, rounded(std::min(allowed, room))});
  }
  if (drafter == kPromptLookup) {
    return best;
  }
  for (const int count : kCounts) {
    if (count <= most) {
      consider({drafter, count});
    }
  }
  steps_without_ = best.count > 0 && best.drafter == drafter ? 0 : steps_without_ + 1;
  if (steps_without_ >= kProbeSteps) {
    steps_without_ = 0;
    return {drafter, 1};
  }
  return best;
}

// Counts a step that another program held up as at most twice the expected time.
void StepDraftPolicy::add_time(int batch, const StepDraft& draft, double seconds) {
  if (times_.contains({batch, StepDraft()})) {
    seconds = std::min(seconds, 2 * this->seconds(batch, draft));
  }
  times_[{batch, draft}].add(seconds);
}

void StepDraftPolicy::learn(Draft& draft, int64_t drafter, int64_t drafted, int64_t accepted) {
  for (int64_t i = 0; i < std::min(accepted + 1, drafted); ++i) {
    rates_.learn(draft, drafter, 0, i < accepted);
  }
}

bool StepDraftPolicy::looks_up(const Sequence& sequence) const {
  const Speculation& options = sequence.draft.options;
  const bool lookup = options.drafter == kAutoDrafter || options.drafter == kPromptLookup;
  return lookup && options.adaptive && options.max_draft > 0;
}

bool StepDraftPolicy::drafts(int64_t drafter, const Sequence& sequence) const {
  return drafter_of(sequence) == drafter || (drafter == kPromptLookup && looks_up(sequence));
}

int64_t StepDraftPolicy::drafter_of(const Sequence& sequence) const {
  return sequence.draft.wanted_drafter(plan_, sequence.experts);
}

// Returns the drafter that most sequences want.
int64_t StepDraftPolicy::drafter_of_most(std::span<Sequence* const> sequences) const {
  int64_t best = kAutoDrafter;
  int64_t best_count = 0;
  for (const Sequence* sequence : sequences) {
    const int64_t drafter = drafter_of(*sequence);
    const int64_t count = std::count_if(sequences.begin(), sequences.end(), [&](const Sequence* other) {
      return other->draft.limit > 0 && drafter_of(*other) == drafter;
    });
    if (count > best_count) {
      best = drafter;
      best_count = count;
    }
  }
  return best;
}

// Expected tokens of a step.
double StepDraftPolicy::tokens(std::span<Sequence* const> sequences, const StepDraft& draft) const {
  double all = 0;
  for (const Sequence* sequence : sequences) {
    all += 1;
    if (draft.count == 0 || !drafts(draft.drafter, *sequence)) {
      continue;
    }
    const double rate = rates_.mean(sequence->draft, draft.drafter);
    const auto count = std::min<int64_t>(draft.count, sequence->draft.limit);
    for (int64_t i = 1; i <= count; ++i) {
      all += std::pow(rate, static_cast<double>(i));
    }
  }
  return all;
}

// Measured time of a step, or else that of a line through the measured ones: a step takes a pass of the drafter for
// each token that it drafts.
double StepDraftPolicy::seconds(int batch, const StepDraft& draft) const {
  const auto known = times_.find({batch, draft});
  if (known != times_.end()) {
    return known->second.seconds;
  }
  const double plain = times_.at({batch, StepDraft()}).seconds;
  return plain + token_seconds(batch, draft.drafter, plain) * draft.count;
}

// Least-squares slope of a line that begins at a plain step.
double StepDraftPolicy::token_seconds(int batch, int64_t drafter, double plain) const {
  double product = 0;
  double squares = 0;
  for (const int count : kCounts) {
    const auto known = times_.find({batch, StepDraft{drafter, count}});
    if (known != times_.end()) {
      product += (known->second.seconds - plain) * count;
      squares += static_cast<double>(count) * count;
    }
  }
  if (squares == 0) {
    return plain * (drafter == kPromptLookup ? kLookupCost : kLaneCost);
  }
  return std::max(0.0, product / squares);
}

}  // namespace dlf
