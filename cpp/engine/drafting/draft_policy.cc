#include "engine/drafting/draft_policy.h"

#include <algorithm>

namespace dlf {
namespace {

constexpr int64_t kProbe = 64;  // steps without a draft after which a lane that only drafts is tried again

}  // namespace

DraftPolicy::DraftPolicy(const FusionPlan& plan, std::vector<const PassTimes*> times)
    : plan_(plan),
      times_(std::move(times)),
      rates_(plan),
      step_times_(plan.lane_model.size() + 1),
      timed_(plan.lane_model.size() + 1),
      rows_(times_.size()),
      drafting_rows_(times_.size()) {}

void DraftPolicy::begin(std::span<Sequence* const> sequences) {
  count_rows(sequences);
  std::fill(timed_.begin(), timed_.end(), false);
  tokens_per_second_ = 0;
  for (Sequence* sequence : sequences) {
    Draft& draft = sequence->draft;
    if (draft.limit == 0) {
      continue;
    }
    const Speculation& options = draft.options;
    const int64_t lane = lane_of(*sequence);
    draft.drafter = lane < 0 ? kPromptLookup : lane;
    const bool looks_up = lane < 0 || (options.adaptive && options.drafter == kAutoDrafter);
    draft.match = looks_up ? PromptLookup::find(sequence->tokens) : PromptLookup::Match();
    if (!options.adaptive) {
      continue;
    }
    time_steps(kPromptLookup);
    const double found = draft.match.length == 0
                             ? 0  // nothing will be drafted
                             : rates_.rate(draft, kPromptLookup, PromptLookup::bin_of(draft.match.length));
    const double by_lookup = tokens_per_second(*sequence, kPromptLookup, found);
    double by_lane = 0;
    if (lane >= 0) {
      time_steps(lane);
      by_lane = tokens_per_second(*sequence, lane, rates_.mean(draft, lane));
    }
    if (by_lookup > by_lane) {
      draft.drafter = kPromptLookup;
    }
    tokens_per_second_ += std::max(by_lane, by_lookup);
  }
}

void DraftPolicy::count_rows(std::span<Sequence* const> sequences) {
  std::fill(rows_.begin(), rows_.end(), 0);
  std::fill(drafting_rows_.begin(), drafting_rows_.end(), 0);
  drafting_ = 0;
  for (const Sequence* sequence : sequences) {
    const bool drafting = sequence->draft.limit > 0;
    drafting_ += drafting ? 1 : 0;
    for (size_t i = 0; i < sequence->lanes.size(); ++i) {
      if (static_cast<int64_t>(i) != plan_.drafter && sequence->lanes[i].used()) {
        ++rows_[plan_.lane_model[i]];
        drafting_rows_[plan_.lane_model[i]] += drafting ? 1 : 0;
      }
    }
  }
}

bool DraftPolicy::worth_drafting(const Sequence& sequence) const {
  const Draft& draft = sequence.draft;
  if (draft.size == 0 && draft.drafter == plan_.drafter && draft.idle >= kProbe) {
    return true;
  }
  return worth_drafting(sequence, rates_.mean(draft, draft.drafter));
}

bool DraftPolicy::worth_drafting(const Sequence& sequence, double acceptance) const {
  const Draft& draft = sequence.draft;
  if (!draft.options.adaptive) {
    return true;
  }
  const StepTimes& times = step_times_[rates_.index(draft.drafter)];
  const double seconds = (times[draft.size + 1] - times[draft.size]) / static_cast<double>(drafting_);
  return draft.reach * acceptance > tokens_per_second_ * seconds;
}

int64_t DraftPolicy::lane_of(const Sequence& sequence) const {
  const int64_t drafter = sequence.draft.wanted_drafter(plan_, sequence.experts);
  return drafter == kPromptLookup ? -1 : drafter;
}

// Estimates the times of steps in which all sequences have this drafter.
void DraftPolicy::time_steps(int64_t drafter) {
  if (timed_[rates_.index(drafter)]) {
    return;
  }
  timed_[rates_.index(drafter)] = true;
  StepTimes& times = step_times_[rates_.index(drafter)];
  for (int64_t drafted = 0; drafted <= kMaxDraft; ++drafted) {
    times[drafted] = step_time(drafter, drafted);
  }
}

// Adds up the drafter's passes and one pass of every model over the last tokens and the drafts. A fused drafter has
// read its own drafts by then, except the last one.
double DraftPolicy::step_time(int64_t drafter, int64_t drafted) const {
  double seconds = 0;
  for (size_t model = 0; model < times_.size(); ++model) {
    int64_t growing = drafting_rows_[model];
    if (drafter >= 0 && plan_.lane_model[drafter] == static_cast<int64_t>(model)) {
      seconds += static_cast<double>(drafted) * times_[model]->of(drafting_);
      growing -= drafter == plan_.drafter ? 0 : drafting_;
    }
    seconds += times_[model]->of(rows_[model] + std::max<int64_t>(growing, 0) * drafted);
  }
  return seconds;
}

// Tokens a second with the best number of drafted tokens.
double DraftPolicy::tokens_per_second(const Sequence& sequence, int64_t drafter, double acceptance) const {
  const StepTimes& times = step_times_[rates_.index(drafter)];
  double most = 0;
  double tokens = 0;
  double next = 1;
  for (int64_t drafted = 0; drafted <= sequence.draft.limit; ++drafted) {
    tokens += next;
    next *= acceptance;
    most = std::max(most, tokens / times[drafted]);
  }
  return most;
}

}  // namespace dlf
