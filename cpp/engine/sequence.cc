#include "engine/sequence.h"

#include <utility>

namespace dlf {

StepOutput& Sequence::next_output(int64_t given, int64_t drafted) {
  StepOutput& output = outputs[given];
  output.drafted = given == 0 ? drafted : -1;
  output.cached_tokens = cached_tokens;
  output.finish = FinishReason::none;
  return output;
}

bool Sequence::append(StepOutput& output) {
  const size_t at = prompt_size() + new_tokens++;
  const bool drafted = at < tokens.size() && tokens[at] == output.token;
  if (!drafted) {
    tokens.resize(at);
    tokens.push_back(output.token);
  }
  if (stops_at(output.token)) {
    output.finish = FinishReason::stop;
  } else if (new_tokens >= limit) {
    output.finish = FinishReason::length;
  }
  finish = output.finish;
  return drafted;
}

void Sequence::fail(StepOutput& output, Failure failure) {
  output.failure = std::move(failure);
  output.finish = finish = FinishReason::error;
}

// Takes all memory that the sequence needs while it decodes.
std::unique_ptr<Sequence> make_sequence(Request request, const FusionPlan& plan, int64_t max_context) {
  auto sequence = std::make_unique<Sequence>();
  sequence->request = request.id;
  sequence->priority = request.priority;
  sequence->limit = request.max_new_tokens;
  sequence->draft_limit = request.max_new_tokens;
  for (int64_t lane = 0; lane < plan.lanes(); ++lane) {
    if (const int64_t prompt = request.prompts[lane].size(); prompt > 0) {
      // The token at the last position of the context is fed back, so one more is chosen after it. When the drafter's
      // context is full, the sequence goes on without drafts.
      const int64_t most = max_context - prompt + 1;
      sequence->draft_limit = std::min(sequence->draft_limit, most);
      sequence->limit = lane == plan.drafter ? sequence->limit : std::min(sequence->limit, most);
    }
  }
  const int64_t max_draft = request.speculation.max_draft;
  sequence->tokens.reserve(request.prompts[0].size() + sequence->limit + max_draft);
  sequence->tokens = request.prompts[0].tokens;
  sequence->draft = Draft(request.speculation, request.experts.size(), plan);
  if (request.rule.gate.exists() && request.speculation.drafter == kAutoDrafter && plan.drafter < 0) {
    sequence->draft.options.drafter = kPromptLookup;  // a drafting expert would read what the gate lets it skip
  }
  sequence->outputs.resize(max_draft + 1);
  for (StepOutput& output : sequence->outputs) {
    output.request = request.id;
    output.alpha.resize(request.experts.size());
    output.top_tokens.reserve(request.sampling.logprobs);
    output.top_logprobs.reserve(request.sampling.logprobs);
  }
  sequence->lanes = make_lanes(std::move(request.prompts), sequence->limit - 1, max_context);
  sequence->experts = std::move(request.experts);
  sequence->rule = std::move(request.rule);
  sequence->sampling = std::move(request.sampling);
  sequence->hook = request.hook;
  sequence->trace = request.trace;
  return sequence;
}

std::vector<Lane> make_lanes(std::vector<Prompt> prompts, int64_t more, int64_t max_context) {
  std::vector<Lane> lanes;
  lanes.reserve(prompts.size());
  for (Prompt& prompt : prompts) {
    Lane& lane = lanes.emplace_back();
    lane.most = prompt.size() > 0 ? std::min(prompt.size() + more, max_context) : 0;
    lane.prompt = std::move(prompt);
  }
  return lanes;
}

void occupy(std::vector<Lane>& lanes, int64_t slot, const FusionPlan& plan) {
  for (size_t lane = 0; lane < lanes.size(); ++lane) {
    lanes[lane].cache_slot = plan.cache_slot(slot, static_cast<int64_t>(lane));
  }
}

}  // namespace dlf
