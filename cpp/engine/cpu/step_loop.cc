#include "engine/cpu/step_loop.h"

#include <c10/util/Exception.h>

#include <algorithm>
#include <bitset>
#include <string>
#include <utility>
#include <vector>

#include "engine/cpu/chunks.h"
#include "engine/cpu/drafter.h"
#include "engine/cpu/fusion_rows.h"
#include "engine/cpu/hook_rows.h"
#include "engine/cpu/masks.h"
#include "engine/cpu/model.h"
#include "engine/cpu/scorer.h"
#include "engine/timer.h"
#include "fusion/bad_model.h"
#include "sampling/cpu/sampler.h"
#include "support/thread_team.h"

namespace dlf::cpu {
namespace {

// Whether the large model's logits alone decide if the other lanes are read.
bool is_gated(const Sequence& sequence) { return !sequence.experts.empty() && sequence.rule.gate.reads_large_alone(); }

class Backend final : public dlf::Backend {
 public:
  Backend(FusionPlan plan, const Models& models, EngineOptions options, const Adapters& adapters);

  void check(const Request& request) const override { dlf::check(request.sampling, plan_.vocab); }
  BlockStore& cache(int64_t model) override { return models_[model].decoder().cache(); }
  ChunkReader& chunks() override { return chunks_; }
  ScoringRows& scoring() override { return scorer_; }
  void begin_step() override;
  void start(Sequence& sequence) override;
  void stop(Sequence& sequence) override { samplers_[sequence.slot].reset(); }
  void decode(std::span<Sequence* const> sequences, StepOutputs& outputs, const StepCalls& calls) override;
  const StepTimings& timings() const override { return last_timings_; }

 private:
  void mask(std::span<Sequence* const> sequences);
  void forward(std::span<Sequence* const> sequences);
  template <typename Chosen>
  void read(std::span<Sequence* const> sequences, Chosen&& chosen);
  void open(Sequence& sequence);
  void call(const Sequence& sequence, FusionResult* fused, const CallHook& hook);
  void solve(std::span<Sequence* const> sequences, const CallHook& hook);
  void sample(std::span<Sequence* const> sequences, StepOutputs& outputs);
  void verify(Sequence& sequence, const FusionResult* fused, StepOutputs& outputs);
  int64_t own_token(const Sequence& sequence, const float* logits, int64_t chosen) const;
  bool choose(Sequence& sequence, int64_t position, const FusionResult* fused, StepOutput& output);

  ThreadTeam team_;
  std::vector<Model> models_;
  StepTimings timings_, last_timings_;
  ChunkReader chunks_;
  Samplers samplers_;
  Masks masks_;
  Drafter drafter_;
  FusionRows fusion_;
  Scorer scorer_;
  std::vector<bool> failed_;  // of the sequence in each slot: whether its hook has failed in this step
  // Of the sequence in each slot, after its last token and each drafted one: whether the gate is open. In a sequence
  // whose gates are all closed, this step reads the large model's lane alone.
  std::vector<std::bitset<kMaxDraft + 1>> open_;
};

std::vector<Model> make_models(const FusionPlan& plan, const Models& weights, const EngineOptions& options,
                               const Adapters& adapters, ThreadTeam& team) {
  const std::vector<CacheSize> caches = cache_sizes(plan, block_bytes(weights), options);
  std::vector<Model> models;
  models.reserve(weights.size());
  for (size_t i = 0; i < weights.size(); ++i) {
    const int64_t lanes = plan.lanes_of(static_cast<int64_t>(i));
    // One slot more for each lane is for scoring.
    models.emplace_back(weights[i], (options.max_batch + 1) * lanes,
                        (options.max_batch + kMaxDraftRows) * lanes + Model::kCatchUpRows, options.max_context,
                        caches[i].blocks(), team, adapters.empty() ? Adapters::value_type() : adapters[i],
                        plan.map_of(static_cast<int64_t>(i)));
  }
  return models;
}

Backend::Backend(FusionPlan plan, const Models& models, EngineOptions options, const Adapters& adapters)
    : dlf::Backend(std::move(plan), models, std::move(options), adapters),
      team_(options_.threads),
      models_(make_models(plan_, models, options_, adapters, team_)),
      chunks_(plan_, models_, timings_),
      samplers_(options_.max_batch),
      masks_(plan_.vocab, options_.max_batch),
      drafter_(plan_, models_, samplers_, masks_, options_.max_batch),
      fusion_(plan_, options_.max_batch + kMaxDraftRows, team_),
      scorer_(plan_, models_, team_),
      failed_(options_.max_batch),
      open_(options_.max_batch) {}

void Backend::begin_step() {
  timings_ = {};
  for (Model& model : models_) {
    model.clear();
  }
  std::fill(failed_.begin(), failed_.end(), false);
}

void Backend::start(Sequence& sequence) {
  samplers_[sequence.slot] = std::make_unique<Sampler>(sequence.sampling, plan_.vocab, sequence.lanes[0].prompt.tokens,
                                                       sequence.limit + sequence.draft.options.max_draft);
  for (const int64_t token : sequence.chosen()) {
    samplers_[sequence.slot]->append(token);
  }
  masks_.start(sequence);
}

void Backend::decode(std::span<Sequence* const> sequences, StepOutputs& outputs, const StepCalls& calls) {
  masks_.begin(calls.masks);
  {
    const Timer timer(timings_.small);
    drafter_.draft(sequences);  // the next pass of all models verifies the drafts
  }
  mask(sequences);
  forward(sequences);
  solve(sequences, calls.hook);
  sample(sequences, outputs);
  for (size_t i = 0; i < models_.size(); ++i) {
    timings_.small_passes += static_cast<int64_t>(i) == plan_.lane_model[0] ? 0 : models_[i].passes();
  }
  last_timings_ = timings_;
}

// Has the masks written that the drafter did not need.
void Backend::mask(std::span<Sequence* const> sequences) {
  const Timer timer(timings_.sample);
  for (Sequence* sequence : sequences) {
    masks_.want(*sequence);
  }
  masks_.ask();
}

// Runs every model once, over the tokens that each lane has not read: the last one and the drafts, in one batch. The
// large model runs first, because it decides whether gates are open. Behind a closed gate the other lanes read nothing;
// when it opens, they catch up.
void Backend::forward(std::span<Sequence* const> sequences) {
  const auto first = [&](const Sequence& sequence, int64_t lane) {
    return plan_.has_large(lane) && (lane == 0 || !is_gated(sequence));
  };
  read(sequences, first);
  for (Sequence* sequence : sequences) {
    open(*sequence);
  }
  read(sequences, [&](const Sequence& sequence, int64_t /*lane*/) { return open_[sequence.slot].any(); });
}

// Runs a pass of the models over the unread tokens of the chosen lanes.
template <typename Chosen>
void Backend::read(std::span<Sequence* const> sequences, Chosen&& chosen) {
  for (int64_t lane = 0; lane < plan_.lanes(); ++lane) {
    for (Sequence* sequence : sequences) {
      if (sequence->lanes[lane].used() && lane != plan_.drafter && chosen(*sequence, lane)) {
        models_[plan_.lane_model[lane]].add_rows(*sequence, sequence->lanes[lane], plan_.adapter_of(lane));
      }
    }
  }
  for (size_t i = 0; i < models_.size(); ++i) {
    const Timer timer(static_cast<int64_t>(i) == plan_.lane_model[0] ? timings_.large : timings_.small);
    models_[i].decode();
  }
}

// Decides the gates of a sequence. If one is open, the lanes that they held back catch up.
void Backend::open(Sequence& sequence) {
  std::bitset<kMaxDraft + 1>& open = open_[sequence.slot];
  open.reset();
  if (!is_gated(sequence)) {
    open.set();
    return;
  }
  for (int64_t position = 0; position <= sequence.draft.size; ++position) {
    open[position] = fusion_.is_open(sequence.rule.gate, logits_of(plan_, models_, sequence.lanes, 0, position));
  }
  for (int64_t lane = 1; lane < plan_.lanes() && open.any(); ++lane) {
    if (sequence.lanes[lane].used() && lane != plan_.drafter) {
      const Timer timer(timings_.small);
      models_[plan_.lane_model[lane]].catch_up(sequence, sequence.lanes[lane], plan_.adapter_of(lane),
                                               sequence.draft.size + 1);
    }
  }
}

// Computes α and the fused logits of every sequence, after its last token and after each drafted one.
void Backend::solve(std::span<Sequence* const> sequences, const CallHook& hook) {
  const Timer timer(timings_.solve);
  fusion_.clear();
  for (const Sequence* sequence : sequences) {
    for (int64_t position = 0; position <= sequence->draft.size && !sequence->experts.empty(); ++position) {
      const GateState gate = !is_gated(*sequence)              ? GateState::undecided
                             : open_[sequence->slot][position] ? GateState::open
                                                               : GateState::closed;
      fusion_.add(sequence->experts, sequence->rule, gate,
                  [&](int64_t lane) { return logits_of(plan_, models_, sequence->lanes, lane, position); });
    }
  }
  fusion_.solve();
  FusionResult* fused = fusion_.results();
  for (const Sequence* sequence : sequences) {
    const int64_t rows = sequence->experts.empty() ? 0 : sequence->draft.size + 1;
    if (sequence->hook) {
      call(*sequence, rows == 0 ? nullptr : fused, hook);
    }
    fused += rows;
  }
}

// Calls the hook of a sequence. If it fails, so does the sequence.
void Backend::call(const Sequence& sequence, FusionResult* fused, const CallHook& hook) {
  TORCH_CHECK(hook, "request ", sequence.request, " has a hook, but the step was called without");
  HookRows rows = hook_rows(
      {plan_, sequence.experts, sequence.draft.size + 1, fused},
      [&](int64_t lane, int64_t position) { return logits_of(plan_, models_, sequence.lanes, lane, position); });
  rows.request = sequence.request;
  rows.step = sequence.new_tokens;
  const std::span<const int64_t> before = std::span(sequence.tokens).last(sequence.draft.size + 1);
  rows.tokens.assign(before.begin(), before.end());
  failed_[sequence.slot] = !hook(rows);
}

void Backend::sample(std::span<Sequence* const> sequences, StepOutputs& outputs) {
  const Timer timer(timings_.sample);
  const FusionResult* fused = fusion_.results();
  for (Sequence* sequence : sequences) {
    const int64_t rows = sequence->experts.empty() ? 0 : sequence->draft.size + 1;
    verify(*sequence, rows == 0 ? nullptr : fused, outputs);
    fused += rows;
  }
}

// Draws a sequence's next token, and one more after each right draft. Each position has a random number of its own, so
// these are the tokens that come without drafts.
void Backend::verify(Sequence& sequence, const FusionResult* fused, StepOutputs& outputs) {
  samplers_[sequence.slot]->rewind(sequence.draft.size);
  bool goes_on = true;
  for (int64_t position = 0; goes_on; ++position) {
    StepOutput& output = sequence.next_output(position, sequence.draft.size);
    outputs.push_back(&output);
    const FusionResult* row = fused == nullptr ? nullptr : fused + position;
    goes_on = choose(sequence, position, row, output) && sequence.append(output) && !sequence.finished();
  }
  if (sequence.finished()) {
    return samplers_[sequence.slot].reset();
  }
  // Later tokens overwrite what wrong drafts left in the caches.
  for (Lane& lane : sequence.lanes) {
    lane.length = std::min(lane.length, lane.prompt.size() + sequence.new_tokens - 1);
  }
}

// Token that the large model alone would choose; `chosen` if it can choose none.
int64_t Backend::own_token(const Sequence& sequence, const float* logits, int64_t chosen) const {
  try {
    return samplers_[sequence.slot]->sample(logits, sequence.new_tokens).token;
  } catch (const SampleError&) {
    return chosen;
  }
}

// Draws a sequence's token of this position. Returns false if it cannot: the sequence has failed.
bool Backend::choose(Sequence& sequence, int64_t position, const FusionResult* fused, StepOutput& output) {
  const float* own_logits = logits_of(plan_, models_, sequence.lanes, 0, position);
  const float* logits = own_logits;
  if (failed_[sequence.slot]) {
    sequence.fail(output, row_failure(kHookFailed, "step " + std::to_string(sequence.new_tokens)));
    return false;
  }
  if (fused != nullptr) {
    std::copy_n(fused->alpha, output.alpha.size(), output.alpha.begin());
    output.f = fused->f;
    output.g = fused->g;
    logits = fused->logits;
    if (fused->bad_model != kNoBadModel) {
      sequence.fail(output, row_failure(fused->bad_model, "step " + std::to_string(sequence.new_tokens)));
      return false;
    }
  }
  try {
    const Drafter::Guesses guesses = drafter_.guess(sequence, position);
    const Sample sample = samplers_[sequence.slot]->sample(logits, sequence.new_tokens, masks_.at(sequence, position));
    output.token = sample.token;
    output.logprob = sample.logprob;
    output.top_tokens.assign(sample.top_tokens, sample.top_tokens + sample.top_count);
    output.top_logprobs.assign(sample.top_logprobs, sample.top_logprobs + sample.top_count);
    drafter_.learn(sequence, guesses, output);
    output.own_token = sequence.trace ? own_token(sequence, own_logits, output.token) : -1;
  } catch (const SampleError& error) {
    sequence.fail(output, sample_failure(error.failure(), sequence.new_tokens));
    return false;
  }
  samplers_[sequence.slot]->append(output.token);
  return true;
}

}  // namespace

std::unique_ptr<StepLoop> make_step_loop(FusionPlan plan, const Models& models, EngineOptions options,
                                         const Adapters& adapters) {
  return std::make_unique<StepLoop>(std::make_unique<Backend>(std::move(plan), models, std::move(options), adapters));
}

}  // namespace dlf::cpu
