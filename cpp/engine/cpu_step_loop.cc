#include "engine/cpu_step_loop.h"

#include <ATen/ops/empty.h>
#include <c10/util/Exception.h>

#include <algorithm>

#include "engine/timer.h"

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
  for (size_t i = 0; i < weights.size(); ++i) {
    const int64_t lanes = std::count(plan_.lane_model.begin(), plan_.lane_model.end(), static_cast<int64_t>(i));
    const int64_t rows = max_batch * lanes;
    CpuModel& model = models_.emplace_back();
    // One more slot for each lane is for scoring; until then nothing touches its memory.
    model.decoder = std::make_unique<Decoder>(weights[i], rows + lanes, max_context_, team_,
                                              adapters.empty() ? Adapters::value_type() : adapters[i]);
    model.logits = at::empty({rows, weights[i]->config().vocab_size}, at::kFloat);
    model.rows.reserve(rows);
    model.owners.reserve(rows);
  }
  running_.reserve(max_batch);
  outputs_.reserve(max_batch);
  const auto experts = static_cast<int64_t>(plan_.experts.size());
  if (experts > 0) {
    solver_ = std::make_unique<FusionSolver>(plan_.fusion, static_cast<int>(experts), plan_.vocab,
                                             static_cast<int>(max_batch), team_);
    expert_logits_.resize(max_batch * experts);
    base_logits_.resize(max_batch * experts);
    alpha_.resize(max_batch * experts);
    target_f_.resize(max_batch * experts);
    target_g_.resize(max_batch * experts);
    inputs_.resize(max_batch);
    results_.resize(max_batch);
    fused_ = at::empty({max_batch, plan_.vocab}, at::kFloat);
  }
}

void CpuStepLoop::add(Request request) {
  check_request(request, plan_, vocab_sizes_, max_context_);
  auto sequence = std::make_unique<Sequence>();
  for (Prompt& prompt : request.prompts) {
    sequence->lanes.emplace_back().prompt = std::move(prompt);
  }
  sequence->experts = std::move(request.experts);
  sequence->request = request.id;
  sequence->max_new_tokens = request.max_new_tokens;
  sequence->stop_token_ids = request.sampling.stop_token_ids;
  sequence->output.request = request.id;
  sequence->output.alpha.resize(sequence->experts.size());
  sequence->output.top_tokens.reserve(request.sampling.logprobs);
  sequence->output.top_logprobs.reserve(request.sampling.logprobs);
  sequence->sampler =
      std::make_unique<Sampler>(std::move(request.sampling), plan_.vocab, sequence->lanes[0].prompt.tokens,
                                std::min(request.max_new_tokens, max_context_));
  waiting_.push_back(std::move(sequence));
}

void CpuStepLoop::cancel(int64_t request) {
  const auto is_request = [&](const std::unique_ptr<Sequence>& sequence) { return sequence->request == request; };
  std::erase_if(waiting_, is_request);
  for (std::unique_ptr<Sequence>& sequence : running_) {
    if (is_request(sequence)) {
      release(*sequence);
    }
  }
  std::erase_if(running_, is_request);
}

bool CpuStepLoop::idle() const {
  return waiting_.empty() &&
         std::all_of(running_.begin(), running_.end(), [](const std::unique_ptr<Sequence>& sequence) {
           return sequence->output.finish != FinishReason::none;
         });
}

const std::vector<const StepOutput*>& CpuStepLoop::step() {
  timings_ = {};
  outputs_.clear();
  retire();
  admit();
  forward();
  solve();
  sample();
  return outputs_;
}

std::vector<Score> CpuStepLoop::score(const ScoreRequest& request, const Poll& poll) {
  check_score(request, plan_, vocab_sizes_, max_context_);
  if (!scorer_) {
    scorer_ = std::make_unique<CpuScorer>(plan_, models_, prompts_, team_, score_rows(plan_, vocab_sizes_));
  }
  return scorer_->score(request, poll);
}

// Sequences that finished in the last step leave in this one, so that their outputs could be read in between.
void CpuStepLoop::retire() {
  std::erase_if(running_, [](const std::unique_ptr<Sequence>& sequence) {
    return sequence->output.finish != FinishReason::none;
  });
}

void CpuStepLoop::admit() {
  while (!waiting_.empty() && static_cast<int64_t>(running_.size()) < max_batch_) {
    Sequence& sequence = *running_.emplace_back(std::move(waiting_.front()));
    waiting_.pop_front();
    for (size_t i = 0; i < sequence.lanes.size(); ++i) {
      if (sequence.lanes[i].used()) {
        sequence.lanes[i].slot = models_[plan_.lane_model[i]].decoder->cache().acquire();
      }
    }
  }
}

// Every model once: the next token of each lane that decodes in one batch, then a piece of each prompt still to be
// read.
void CpuStepLoop::forward() {
  for (CpuModel& model : models_) {
    model.rows.clear();
    model.owners.clear();
  }
  for (size_t i = 0; i < plan_.lane_model.size(); ++i) {
    CpuModel& model = models_[plan_.lane_model[i]];
    for (std::unique_ptr<Sequence>& sequence : running_) {
      Lane& lane = sequence->lanes[i];
      if (sequence->prefilled && lane.used()) {
        model.rows.push_back(
            {sequence->last_token, lane.slot, lane.length++, plan_.adapter_of(static_cast<int64_t>(i))});
        model.add_logits(lane);
      }
    }
  }
  for (size_t i = 0; i < models_.size(); ++i) {
    CpuModel& model = models_[i];
    const Timer timer(static_cast<int64_t>(i) == plan_.lane_model[0] ? timings_.large : timings_.small);
    if (!model.rows.empty()) {
      model.decoder->decode(model.rows, model.logits.mutable_data_ptr<float>());
    }
  }
  for (std::unique_ptr<Sequence>& sequence : running_) {
    if (!sequence->prefilled) {
      sequence->prefilled = prompts_.read(sequence->lanes, sequence->output.cached_tokens, timings_);
    }
  }
}

// α and the fused logits of every sequence that has read its prompt.
void CpuStepLoop::solve() {
  if (!solver_) {
    return;
  }
  const Timer timer(timings_.solve);
  size_t count = 0;
  for (std::unique_ptr<Sequence>& sequence : running_) {
    if (!sequence->prefilled || sequence->experts.empty()) {
      continue;
    }
    const size_t at = count * plan_.experts.size();
    for (size_t t = 0; t < sequence->experts.size(); ++t) {
      const ExpertLanes& lanes = plan_.experts[sequence->experts[t]];
      expert_logits_[at + t] = sequence->lanes[lanes.expert].logits;
      base_logits_[at + t] = sequence->lanes[lanes.base].logits;
    }
    inputs_[count] = {sequence->lanes[0].logits, &expert_logits_[at], &base_logits_[at], sequence->experts.data(),
                      static_cast<int>(sequence->experts.size())};
    FusionResult& result = results_[count];
    result.alpha = &alpha_[at];
    result.target_f = &target_f_[at];
    result.target_g = &target_g_[at];
    result.logits = fused_.mutable_data_ptr<float>() + static_cast<int64_t>(count) * plan_.vocab;
    ++count;
  }
  solver_->solve({inputs_.data(), count}, {results_.data(), count});
}

void CpuStepLoop::sample() {
  const Timer timer(timings_.sample);
  size_t row = 0;
  for (std::unique_ptr<Sequence>& sequence : running_) {
    if (!sequence->prefilled) {
      continue;
    }
    StepOutput& output = sequence->output;
    output.finish = FinishReason::none;
    if (sequence->experts.empty()) {
      append_token(*sequence, sequence->lanes[0].logits);
      continue;
    }
    const FusionResult& fused = results_[row++];
    std::copy_n(fused.alpha, output.alpha.size(), output.alpha.begin());
    output.f = fused.f;
    output.g = fused.g;
    if (fused.bad_model == kNoBadModel) {
      append_token(*sequence, fused.logits);
    } else {
      fail(*sequence, describe_bad_model(fused.bad_model) + " at step " + std::to_string(sequence->new_tokens));
    }
  }
}

// Draws a sequence's next token, appends it, and sees whether that was the last one.
void CpuStepLoop::append_token(Sequence& sequence, const float* logits) {
  StepOutput& output = sequence.output;
  try {
    const Sample sample = sequence.sampler->sample(logits, sequence.new_tokens);
    output.token = sample.token;
    output.logprob = sample.logprob;
    output.top_tokens.assign(sample.top_tokens, sample.top_tokens + sample.top_count);
    output.top_logprobs.assign(sample.top_logprobs, sample.top_logprobs + sample.top_count);
  } catch (const c10::Error& error) {
    return fail(sequence, error.what_without_backtrace());
  }
  sequence.sampler->append(output.token);
  sequence.last_token = output.token;
  ++sequence.new_tokens;
  const std::vector<int64_t>& stops = sequence.stop_token_ids;
  if (std::find(stops.begin(), stops.end(), output.token) != stops.end()) {
    output.finish = FinishReason::stop;
  } else if (sequence.new_tokens == sequence.max_new_tokens ||
             std::any_of(sequence.lanes.begin(), sequence.lanes.end(),
                         [&](const Lane& lane) { return lane.length == max_context_; })) {
    output.finish = FinishReason::length;
  }
  outputs_.push_back(&output);
  if (output.finish != FinishReason::none) {
    release(sequence);
  }
}

void CpuStepLoop::fail(Sequence& sequence, const std::string& what) {
  sequence.output.finish = FinishReason::error;
  sequence.output.error = what;
  outputs_.push_back(&sequence.output);
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
