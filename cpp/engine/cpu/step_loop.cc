#include "engine/cpu/step_loop.h"

#include <ATen/ops/empty.h>
#include <c10/util/Exception.h>

#include <algorithm>

#include "engine/timer.h"
#include "fusion/bad_model.h"

namespace dlf {

CpuStepLoop::CpuStepLoop(FusionPlan plan, const Models& weights, const CpuOptions& options, const Adapters& adapters)
    : plan_(std::move(plan)),
      vocab_sizes_(vocab_sizes(weights)),
      max_batch_(options.max_batch),
      max_context_(options.max_context),
      team_(options.threads),
      prompts_(plan_, models_, options.prefix_cache_bytes, team_) {
  const int64_t max_batch = options.max_batch;
  check_plan(plan_, weights, adapters, max_batch, max_context_);
  const int64_t rows = max_batch + kDraftRows;  // of one lane; memory that no draft needs stays untouched
  for (size_t i = 0; i < weights.size(); ++i) {
    const int64_t lanes = std::count(plan_.lane_model.begin(), plan_.lane_model.end(), static_cast<int64_t>(i));
    CpuModel& model = models_.emplace_back();
    // One more slot for each lane is for scoring; until then nothing touches its memory.
    model.decoder = std::make_unique<Decoder>(weights[i], (max_batch + 1) * lanes, max_context_, team_,
                                              adapters.empty() ? Adapters::value_type() : adapters[i], rows * lanes);
    model.logits = at::empty({rows * lanes, weights[i]->config().vocab_size}, at::kFloat);
    model.rows.reserve(rows * lanes);
  }
  running_.reserve(max_batch);
  outputs_.reserve(rows);
  drafter_ = std::make_unique<CpuDrafter>(plan_, models_, max_batch, max_context_);
  fusion_ = std::make_unique<FusionRows>(plan_, rows, team_);
}

void CpuStepLoop::add(Request request) {
  check_request(request, plan_, vocab_sizes_, max_context_);
  check(request.sampling, plan_.vocab);
  auto sequence = std::make_unique<Sequence>();
  const int64_t max_draft = request.speculation.max_draft;
  const int64_t new_tokens = std::min(request.max_new_tokens, max_context_) + max_draft;
  sequence->text = request.prompts[0].tokens;
  sequence->text.reserve(sequence->text.size() + new_tokens);
  for (Prompt& prompt : request.prompts) {
    Lane& lane = sequence->lanes.emplace_back();
    lane.prompt = std::move(prompt);
    lane.logits.reserve(max_draft + 2);
  }
  sequence->experts = std::move(request.experts);
  sequence->rule = std::move(request.rule);
  sequence->request = request.id;
  sequence->max_new_tokens = request.max_new_tokens;
  sequence->stop_token_ids = request.sampling.stop_token_ids;
  sequence->draft.options = request.speculation;
  sequence->draft.weight.resize(sequence->experts.size());
  sequence->draft.acceptance.assign(plan_.lane_model.size() + 1, Acceptance(Draft::kMemory));
  sequence->draft.bins.reserve(max_draft);
  sequence->outputs.resize(max_draft + 1);
  for (StepOutput& output : sequence->outputs) {
    output.request = request.id;
    output.alpha.resize(sequence->experts.size());
    output.top_tokens.reserve(request.sampling.logprobs);
    output.top_logprobs.reserve(request.sampling.logprobs);
  }
  sequence->sampler =
      std::make_unique<Sampler>(std::move(request.sampling), plan_.vocab, sequence->lanes[0].prompt.tokens, new_tokens);
  waiting_.push(std::move(sequence));
}

void CpuStepLoop::cancel(int64_t request) {
  waiting_.erase(request);
  const auto is_request = [&](const std::unique_ptr<Sequence>& sequence) { return sequence->request == request; };
  for (std::unique_ptr<Sequence>& sequence : running_) {
    if (is_request(sequence)) {
      release(*sequence);
    }
  }
  std::erase_if(running_, is_request);
}

bool CpuStepLoop::idle() const {
  return waiting_.empty() &&
         std::all_of(running_.begin(), running_.end(),
                     [](const std::unique_ptr<Sequence>& sequence) { return sequence->finish != FinishReason::none; });
}

const std::vector<const StepOutput*>& CpuStepLoop::step() {
  try {
    decode();
  } catch (...) {
    abandon();
    throw;
  }
  return outputs_;
}

void CpuStepLoop::decode() {
  timings_ = {};
  outputs_.clear();
  retire();
  admit();
  draft();
  forward();
  solve();
  sample();
}

// After a step that broke off: what is in the caches of the sequences is unknown, so that none can go on.
void CpuStepLoop::abandon() {
  outputs_.clear();
  for (std::unique_ptr<Sequence>& sequence : running_) {
    release(*sequence);
  }
  running_.clear();
  for (CpuModel& model : models_) {
    model.rows.clear();
  }
}

std::vector<Score> CpuStepLoop::score(const ScoreRequest& request, const Poll& poll) {
  check_score(request, plan_, vocab_sizes_, max_context_);
  const ScoringPlace place(scoring_);
  if (!scorer_) {
    scorer_ = std::make_unique<CpuScorer>(plan_, models_, prompts_, team_, score_rows(plan_, vocab_sizes_));
  }
  return scorer_->score(request, poll);
}

// Sequences that finished in the last step leave in this one, so that their outputs could be read in between.
void CpuStepLoop::retire() {
  std::erase_if(running_,
                [](const std::unique_ptr<Sequence>& sequence) { return sequence->finish != FinishReason::none; });
}

void CpuStepLoop::admit() {
  while (!waiting_.empty() && static_cast<int64_t>(running_.size()) < max_batch_) {
    Sequence& sequence = *running_.emplace_back(waiting_.pop());
    for (size_t i = 0; i < sequence.lanes.size(); ++i) {
      if (sequence.lanes[i].used()) {
        sequence.lanes[i].slot = models_[plan_.lane_model[i]].decoder->cache().acquire();
      }
    }
  }
}

// What small models expect to come, for the next pass of all models to verify.
void CpuStepLoop::draft() {
  for (CpuModel& model : models_) {
    model.logits_used = 0;
  }
  for (std::unique_ptr<Sequence>& sequence : running_) {
    for (Lane& lane : sequence->lanes) {
      lane.logits.clear();
    }
  }
  const Timer timer(timings_.small);
  drafter_->draft(running_);
}

// Every model once: the tokens that each lane has not read, the last one and the drafts, in one batch; then a piece of
// each prompt still to be read.
void CpuStepLoop::forward() {
  for (size_t i = 0; i < plan_.lane_model.size(); ++i) {
    for (std::unique_ptr<Sequence>& sequence : running_) {
      Lane& lane = sequence->lanes[i];
      const auto index = static_cast<int64_t>(i);
      if (sequence->prefilled && lane.used() && index != plan_.drafter) {
        models_[plan_.lane_model[i]].add_rows(*sequence, lane, plan_.adapter_of(index));
      }
    }
  }
  for (size_t i = 0; i < models_.size(); ++i) {
    const Timer timer(static_cast<int64_t>(i) == plan_.lane_model[0] ? timings_.large : timings_.small);
    models_[i].decode();
  }
  for (std::unique_ptr<Sequence>& sequence : running_) {
    if (!sequence->prefilled) {
      sequence->prefilled = prompts_.read(sequence->lanes, sequence->outputs[0].cached_tokens, timings_);
    }
  }
}

// α and the fused logits of every sequence that has read its prompt, after its last token and after each of its draft.
void CpuStepLoop::solve() {
  const Timer timer(timings_.solve);
  fusion_->clear();
  for (std::unique_ptr<Sequence>& sequence : running_) {
    if (!sequence->prefilled || sequence->experts.empty()) {
      continue;
    }
    for (int64_t position = 0; position <= sequence->draft.size; ++position) {
      fusion_->add(sequence->experts, sequence->rule,
                   [&](int64_t lane) { return sequence->lanes[lane].logits[position]; });
    }
  }
  fusion_->solve();
}

void CpuStepLoop::sample() {
  const Timer timer(timings_.sample);
  const FusionResult* fused = fusion_->results();
  for (std::unique_ptr<Sequence>& sequence : running_) {
    if (!sequence->prefilled) {
      continue;
    }
    const int64_t rows = sequence->experts.empty() ? 0 : sequence->draft.size + 1;
    verify(*sequence, rows == 0 ? nullptr : fused);
    fused += rows;
  }
}

// Draws a sequence's next token, and one more after each that was drafted rightly. As the draw of a position has a
// random number of its own, these are the tokens that come without drafts.
void CpuStepLoop::verify(Sequence& sequence, const FusionResult* fused) {
  sequence.sampler->rewind(sequence.draft.size);
  int64_t position = 0;
  while (append_token(sequence, position, fused == nullptr ? nullptr : fused + position)) {
    ++position;
  }
  // What caches hold of drafts that were wrong will be overwritten.
  for (Lane& lane : sequence.lanes) {
    const auto prompt = static_cast<int64_t>(lane.prompt.tokens.size());
    lane.length = std::min(lane.length, prompt + sequence.new_tokens - 1);
  }
}

// Draws a sequence's next token, appends it, and sees whether that was the last one. True if it was drafted, and the
// next one can be drawn as well.
bool CpuStepLoop::append_token(Sequence& sequence, int64_t position, const FusionResult* fused) {
  StepOutput& output = sequence.outputs[position];
  output.cached_tokens = sequence.outputs[0].cached_tokens;
  output.finish = FinishReason::none;
  output.drafted = position == 0 ? sequence.draft.size : -1;
  outputs_.push_back(&output);
  const float* logits = sequence.lanes[0].logits[position];
  if (fused != nullptr) {
    std::copy_n(fused->alpha, output.alpha.size(), output.alpha.begin());
    output.f = fused->f;
    output.g = fused->g;
    logits = fused->logits;
    if (fused->bad_model != kNoBadModel) {
      fail(sequence, output, describe_bad_model(fused->bad_model) + " at step " + std::to_string(sequence.new_tokens));
      return false;
    }
  }
  try {
    const CpuDrafter::Guesses guesses = drafter_->guess(sequence, position);
    const Sample sample = sequence.sampler->sample(logits, sequence.new_tokens);
    output.token = sample.token;
    output.logprob = sample.logprob;
    output.top_tokens.assign(sample.top_tokens, sample.top_tokens + sample.top_count);
    output.top_logprobs.assign(sample.top_logprobs, sample.top_logprobs + sample.top_count);
    drafter_->learn(sequence, guesses, output);
  } catch (const c10::Error& error) {
    fail(sequence, output, error.what_without_backtrace());
    return false;
  }
  sequence.sampler->append(output.token);
  const size_t at = sequence.prompt_size() + sequence.new_tokens++;
  const bool drafted = at < sequence.text.size() && sequence.text[at] == output.token;
  if (!drafted) {
    sequence.text.resize(at);
    sequence.text.push_back(output.token);
  }
  if (sequence.stops_at(output.token)) {
    output.finish = FinishReason::stop;
  } else if (sequence.new_tokens == sequence.max_new_tokens || fills_context(sequence)) {
    output.finish = FinishReason::length;
  }
  sequence.finish = output.finish;
  if (sequence.finish != FinishReason::none) {
    release(sequence);
  }
  return drafted && sequence.finish == FinishReason::none;
}

// Whether a cache has no place for the last token. The drafter's does not count: a sequence goes on without.
bool CpuStepLoop::fills_context(const Sequence& sequence) const {
  for (size_t i = 0; i < sequence.lanes.size(); ++i) {
    const auto prompt = static_cast<int64_t>(sequence.lanes[i].prompt.tokens.size());
    if (prompt > 0 && static_cast<int64_t>(i) != plan_.drafter && prompt + sequence.new_tokens > max_context_) {
      return true;
    }
  }
  return false;
}

void CpuStepLoop::fail(Sequence& sequence, StepOutput& output, const std::string& what) {
  output.finish = FinishReason::error;
  output.error = what;
  sequence.finish = FinishReason::error;
  release(sequence);
}

void CpuStepLoop::release(Sequence& sequence) {
  for (size_t i = 0; i < sequence.lanes.size(); ++i) {
    int64_t& slot = sequence.lanes[i].slot;
    if (slot >= 0) {
      models_[plan_.lane_model[i]].decoder->cache().release(slot);
      slot = -1;
    }
  }
}

}  // namespace dlf
