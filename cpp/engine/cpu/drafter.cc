#include "engine/cpu/drafter.h"

#include <c10/util/Exception.h>

#include <algorithm>
#include <cmath>
#include <optional>

namespace dlf {
namespace {

// After so many steps without a draft, every so many of them are enough to see whether that should change.
constexpr int64_t kHopeless = 16;
constexpr int64_t kGlance = 8;

std::vector<const PassTimes*> times_of(const std::vector<CpuModel>& models) {
  std::vector<const PassTimes*> times;
  times.reserve(models.size());
  for (const CpuModel& model : models) {
    times.push_back(&model.times);
  }
  return times;
}

// What the sequence's sampler makes of a drafter's logits; nothing where it can choose no token by them.
std::optional<Sample> try_sample(Sequence& sequence, const float* logits, int64_t step) {
  try {
    return sequence.sampler->sample(logits, step);
  } catch (const c10::Error&) {
    return std::nullopt;
  }
}

}  // namespace

CpuDrafter::CpuDrafter(const FusionPlan& plan, std::vector<CpuModel>& models, int64_t max_batch, int64_t max_context)
    : plan_(plan), models_(models), max_context_(max_context), policy_(plan, times_of(models)) {
  sequences_.reserve(max_batch);
  drafted_.reserve(max_batch);
}

void CpuDrafter::draft(std::span<const std::unique_ptr<Sequence>> running) {
  sequences_.clear();
  for (const std::unique_ptr<Sequence>& sequence : running) {
    if (sequence->prefilled) {
      sequences_.push_back(sequence.get());
    }
  }
  bool any = false;
  for (Sequence* sequence : sequences_) {
    Draft& draft = sequence->draft;
    draft.size = 0;
    draft.reach = 1;
    draft.bins.clear();
    draft.limit = std::max<int64_t>(room(*sequence), 0);
    any |= draft.limit > 0;
  }
  if (!any) {
    return;
  }
  policy_.begin(sequences_);
  for (Sequence* sequence : sequences_) {
    if (sequence->draft.limit > 0 && sequence->draft.drafter == kPromptLookup) {
      look_up(*sequence);
    }
  }
  while (pass()) {
  }
  for (Sequence* sequence : sequences_) {
    sequence->draft.idle = sequence->draft.size > 0 ? 0 : sequence->draft.idle + 1;
  }
}

// Tokens that may be drafted: they and the one after them must be wanted, and have places in every cache.
int64_t CpuDrafter::room(const Sequence& sequence) const {
  int64_t room = std::min({sequence.draft.options.max_draft, kDraftRows / static_cast<int64_t>(sequences_.size()),
                           sequence.max_new_tokens - sequence.new_tokens - 1});
  for (const Lane& lane : sequence.lanes) {
    if (lane.used()) {
      room = std::min(room, max_context_ - lane.length - static_cast<int64_t>(sequence.unread(lane).size()));
    }
  }
  return room;
}

void CpuDrafter::look_up(Sequence& sequence) const {
  Draft& draft = sequence.draft;
  for (const int64_t token : draft.match.next) {
    const int bin = PromptLookup::bin_of(draft.match.length + draft.size);
    if (draft.size == draft.limit ||
        !policy_.worth_drafting(sequence, policy_.acceptance(sequence, kPromptLookup, bin))) {
      break;
    }
    add(sequence, token, bin);
  }
  draft.limit = draft.size;
}

// One more token of every sequence whose draft is to go on, a pass of each drafter for all of them. False if there are
// none.
bool CpuDrafter::pass() {
  drafted_.clear();
  for (size_t i = 0; i < plan_.lane_model.size(); ++i) {
    CpuModel& model = models_[plan_.lane_model[i]];
    for (Sequence* sequence : sequences_) {
      const Draft& draft = sequence->draft;
      if (draft.drafter != static_cast<int64_t>(i) || draft.size >= draft.limit) {
        continue;
      }
      if (!policy_.worth_drafting(*sequence)) {
        sequence->draft.limit = draft.size;
        continue;
      }
      catch_up(*sequence, sequence->lanes[i]);
      model.add_rows(*sequence, sequence->lanes[i], plan_.adapter_of(static_cast<int64_t>(i)));
      drafted_.push_back(sequence);
    }
  }
  for (CpuModel& model : models_) {
    model.decode();
  }
  for (Sequence* sequence : drafted_) {
    take(*sequence, sequence->lanes[sequence->draft.drafter].logits.back());
  }
  return !drafted_.empty();
}

// A drafter that is not fused has not read what came while others drafted, or nobody.
void CpuDrafter::catch_up(const Sequence& sequence, Lane& lane) {
  const auto lane_index = &lane - sequence.lanes.data();
  const std::span<const int64_t> unread = sequence.unread(lane);
  if (unread.size() > 2) {
    const std::span<const int64_t> tokens = unread.first(unread.size() - 1);
    models_[plan_.lane_model[lane_index]].decoder->prefill(tokens, lane.slot, lane.length, nullptr,
                                                           /*all_logits=*/false, plan_.adapter_of(lane_index));
    lane.length += static_cast<int64_t>(tokens.size());
  }
}

void CpuDrafter::take(Sequence& sequence, const float* logits) const {
  Draft& draft = sequence.draft;
  const std::optional<Sample> sample = try_sample(sequence, logits, sequence.new_tokens + draft.size);
  if (sample) {
    add(sequence, sample->token, Acceptance::bin_of(std::exp(sample->logprob)));
  } else {
    draft.limit = draft.size;
  }
}

void CpuDrafter::add(Sequence& sequence, int64_t token, int bin) const {
  Draft& draft = sequence.draft;
  sequence.text.push_back(token);
  sequence.sampler->append(token);
  draft.reach *= policy_.acceptance(sequence, draft.drafter, bin);
  draft.bins.push_back(bin);
  ++draft.size;
  if (sequence.stops_at(token)) {
    draft.limit = draft.size;
  }
}

CpuDrafter::Guesses CpuDrafter::guess(Sequence& sequence, int64_t position) const {
  Guesses guesses;
  const Draft& draft = sequence.draft;
  if (draft.options.max_draft == 0 || !draft.options.adaptive) {
    return guesses;
  }
  if (draft.idle > kHopeless && sequence.new_tokens % kGlance != 0) {
    return guesses;
  }
  const std::span<const int64_t> text = std::span(sequence.text).first(sequence.prompt_size() + sequence.new_tokens);
  const int64_t lane = policy_.lane_of(sequence);
  if (position < draft.size && lane >= 0 && draft.drafter == lane) {
    guesses.by_lane = {lane, sequence.text[text.size()], draft.bins[position]};
  } else if (lane >= 0 && lane != plan_.drafter) {
    const std::optional<Sample> sample =
        try_sample(sequence, sequence.lanes[lane].logits[position], sequence.new_tokens);
    if (sample) {
      guesses.by_lane = {lane, sample->token, Acceptance::bin_of(std::exp(sample->logprob))};
    }
  }
  if (lane < 0 || draft.options.drafter == kAutoDrafter) {
    const PromptLookup::Match match = PromptLookup::find(text);
    if (match.length > 0) {
      guesses.by_lookup = {kPromptLookup, match.next[0], PromptLookup::bin_of(match.length)};
    }
  }
  return guesses;
}

void CpuDrafter::learn(Sequence& sequence, const Guesses& guesses, const StepOutput& output) {
  sequence.draft.add_weights(output.alpha);
  for (const Guess& guess : {guesses.by_lane, guesses.by_lookup}) {
    if (guess.token >= 0) {
      policy_.learn(sequence, guess.drafter, guess.bin, guess.token == output.token);
    }
  }
}

}  // namespace dlf
