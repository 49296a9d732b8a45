#include "engine/cpu/drafter.h"

#include <c10/util/Exception.h>

#include <algorithm>
#include <cmath>
#include <optional>

namespace dlf::cpu {
namespace {

// After kHopeless steps without a draft, every kGlance-th step is enough to see whether that should change.
constexpr int64_t kHopeless = 16;
constexpr int64_t kGlance = 8;

std::vector<const PassTimes*> times_of(const std::vector<Model>& models) {
  std::vector<const PassTimes*> times;
  times.reserve(models.size());
  for (const Model& model : models) {
    times.push_back(&model.times());
  }
  return times;
}

}  // namespace

Drafter::Drafter(const FusionPlan& plan, std::vector<Model>& models, const Samplers& samplers, Masks& masks,
                 int64_t max_batch)
    : plan_(plan), models_(models), samplers_(samplers), masks_(masks), policy_(plan, times_of(models)) {
  sequences_.reserve(max_batch);
  drafted_.reserve(max_batch);
}

void Drafter::draft(std::span<Sequence* const> sequences) {
  sequences_.clear();
  for (Sequence* sequence : sequences) {
    sequence->draft.size = 0;
    if (!sequence->unread(sequence->lanes[0]).empty()) {  // else the next token needs no pass
      sequences_.push_back(sequence);
    }
  }
  bool any = false;
  for (Sequence* sequence : sequences_) {
    Draft& draft = sequence->draft;
    draft.reach = 1;
    draft.bins.clear();
    const int64_t share = kMaxDraftRows / static_cast<int64_t>(sequences_.size());
    draft.limit = std::clamp<int64_t>(sequence->draft_room(), 0, share);
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

void Drafter::look_up(Sequence& sequence) const {
  Draft& draft = sequence.draft;
  for (const int64_t token : draft.match.next) {
    const int bin = PromptLookup::bin_of(draft.match.length + draft.size);
    if (draft.size == draft.limit ||
        !policy_.worth_drafting(sequence, policy_.rates().rate(draft, kPromptLookup, bin))) {
      break;
    }
    add(sequence, token, bin);
  }
  draft.limit = draft.size;
}

// Drafts one more token of every sequence whose draft is to go on, with one pass of each drafter. Returns false if
// there are none.
bool Drafter::pass() {
  drafted_.clear();
  for (int64_t lane = 0; lane < plan_.lanes(); ++lane) {
    Model& model = models_[plan_.lane_model[lane]];
    for (Sequence* sequence : sequences_) {
      const Draft& draft = sequence->draft;
      if (draft.drafter != lane || draft.size >= draft.limit) {
        continue;
      }
      if (!policy_.worth_drafting(*sequence)) {
        sequence->draft.limit = draft.size;
        continue;
      }
      catch_up(*sequence, sequence->lanes[lane]);
      model.add_rows(*sequence, sequence->lanes[lane], plan_.adapter_of(lane));
      drafted_.push_back(sequence);
    }
  }
  for (Model& model : models_) {
    model.decode();
  }
  for (Sequence* sequence : drafted_) {
    masks_.want(*sequence);
  }
  masks_.ask();
  for (Sequence* sequence : drafted_) {
    take(*sequence);
  }
  return !drafted_.empty();
}

// Reads the tokens that a drafter missed while it did not draft, or while a gate held it back.
void Drafter::catch_up(const Sequence& sequence, Lane& lane) {
  const auto lane_index = &lane - sequence.lanes.data();
  if (lane_index != plan_.drafter) {  // its logits are fused later, so its cache must be that of single steps
    return models_[plan_.lane_model[lane_index]].catch_up(sequence, lane, plan_.adapter_of(lane_index), 1);
  }
  const std::span<const int64_t> unread = sequence.unread(lane);
  if (unread.size() > 2) {
    const std::span<const int64_t> tokens = unread.first(unread.size() - 1);
    Model& model = models_[plan_.lane_model[lane_index]];
    model.read(model.own_ids(tokens), lane.cache_slot, lane.length, nullptr, /*all_logits=*/false,
               plan_.adapter_of(lane_index));
    lane.length += static_cast<int64_t>(tokens.size());
  }
}

// Samples from a drafter's logits as the sequence does; nothing if no token can be chosen.
std::optional<Sample> Drafter::sample(const Sequence& sequence, const float* logits, int64_t step,
                                      int64_t position) const {
  try {
    return sampler(sequence).sample(logits, step, masks_.at(sequence, position));
  } catch (const c10::Error&) {
    return std::nullopt;
  }
}

void Drafter::take(Sequence& sequence) const {
  Draft& draft = sequence.draft;
  const std::vector<const float*>& rows =
      models_[plan_.lane_model[draft.drafter]].logits(sequence.lanes[draft.drafter]);
  const std::optional<Sample> sample =
      this->sample(sequence, rows.back(), sequence.new_tokens + draft.size, draft.size);
  if (sample) {
    add(sequence, sample->token, Acceptance::bin_of(std::exp(sample->logprob)));
  } else {
    draft.limit = draft.size;
  }
}

void Drafter::add(Sequence& sequence, int64_t token, int bin) const {
  Draft& draft = sequence.draft;
  sequence.tokens.push_back(token);
  sampler(sequence).append(token);
  draft.reach *= policy_.rates().rate(draft, draft.drafter, bin);
  draft.bins.push_back(bin);
  ++draft.size;
  if (sequence.stops_at(token)) {
    draft.limit = draft.size;
  }
}

Drafter::Guesses Drafter::guess(Sequence& sequence, int64_t position) const {
  Guesses guesses;
  const Draft& draft = sequence.draft;
  if (draft.options.max_draft == 0 || !draft.options.adaptive) {
    return guesses;
  }
  if (draft.idle > kHopeless && sequence.new_tokens % kGlance != 0) {
    return guesses;
  }
  const std::span known = std::span(sequence.tokens).first(sequence.prompt_size() + sequence.new_tokens);
  const int64_t lane = policy_.lane_of(sequence);
  if (position < draft.size && lane >= 0 && draft.drafter == lane) {
    guesses.by_lane = {lane, sequence.tokens[known.size()], draft.bins[position]};
  } else if (lane >= 0 && lane != plan_.drafter) {
    const float* logits = logits_of(plan_, models_, sequence.lanes, lane, position);
    const std::optional<Sample> said =
        logits == nullptr ? std::nullopt : sample(sequence, logits, sequence.new_tokens, position);
    if (said) {
      guesses.by_lane = {lane, said->token, Acceptance::bin_of(std::exp(said->logprob))};
    }
  }
  if (lane < 0 || draft.options.drafter == kAutoDrafter) {
    const PromptLookup::Match match = PromptLookup::find(known);
    if (match.length > 0) {
      guesses.by_lookup = {kPromptLookup, match.next[0], PromptLookup::bin_of(match.length)};
    }
  }
  return guesses;
}

void Drafter::learn(Sequence& sequence, const Guesses& guesses, const StepOutput& output) {
  sequence.draft.add_weights(output.alpha);
  for (const Guess& guess : {guesses.by_lane, guesses.by_lookup}) {
    if (guess.token >= 0) {
      policy_.rates().learn(sequence.draft, guess.drafter, guess.bin, guess.token == output.token);
    }
  }
}

}  // namespace dlf::cpu
