#include "engine/request.h"

#include <c10/util/Exception.h>

namespace dlf {
namespace {

// Checks the prompts of a request that fuses `experts`; `more` tokens will follow each in its cache.
void check_prompts(const std::vector<Prompt>& prompts, const std::vector<int>& experts, const FusionPlan& plan,
                   const std::vector<int64_t>& vocab_sizes, int64_t max_context, int64_t more, bool drafts) {
  TORCH_CHECK_VALUE(prompts.size() == plan.lane_model.size(), "a request needs a prompt for each of the ",
                    plan.lane_model.size(), " lanes");
  std::vector<bool> needed(plan.lane_model.size());
  needed[0] = true;
  if (drafts) {
    needed[plan.drafter] = true;
  }
  for (size_t i = 0; i < experts.size(); ++i) {
    const int expert = experts[i];
    TORCH_CHECK_INDEX(
        expert >= 0 && expert < static_cast<int>(plan.experts.size()) && (i == 0 || expert > experts[i - 1]),
        "a request names its experts in rising order, from 0 to ", plan.experts.size(), " - 1");
    needed[plan.experts[expert].expert] = true;
    if (plan.experts[expert].base != kNoLane) {
      needed[plan.experts[expert].base] = true;
    }
  }
  for (size_t i = 0; i < prompts.size(); ++i) {
    const int64_t length = prompts[i].size();
    TORCH_CHECK_VALUE(needed[i] == (length >= 1), needed[i]
                                                      ? "the prompt has no tokens"
                                                      : "there is a prompt for a lane that no chosen expert needs");
    TORCH_CHECK_VALUE(std::is_sorted(prompts[i].breaks.begin(), prompts[i].breaks.end()),
                      "the breaks of a prompt must rise");
    TORCH_CHECK_VALUE(length + more <= max_context, "the prompt has ", length, " tokens; the context of ", max_context,
                      " leaves no room for ", more, " more (shorten it or raise max_context)");
    const int64_t vocab = vocab_sizes[plan.lane_model[i]];
    for (const int64_t token : prompts[i].tokens) {
      TORCH_CHECK_INDEX(token >= 0 && token < vocab, "token id ", token, " is outside the vocabulary of ", vocab);
    }
  }
}

}  // namespace

int64_t Prompt::chunk_end(int64_t begin, int64_t most) const {
  const auto next = std::upper_bound(breaks.begin(), breaks.end(), begin);
  const int64_t end = std::min(begin + most, size());
  return next == breaks.end() ? end : std::min(end, *next);
}

int64_t Prompt::chunks_from(int64_t begin, int64_t most) const {
  int64_t count = 0;
  for (; begin < size(); begin = chunk_end(begin, most)) {
    ++count;
  }
  return count;
}

void check_request(const Request& request, const FusionPlan& plan, const std::vector<int64_t>& vocab_sizes,
                   int64_t max_context) {
  TORCH_CHECK_VALUE(request.max_new_tokens >= 1, "max_new_tokens must be at least 1");
  const auto& [max_draft, drafter, adaptive] = request.speculation;
  TORCH_CHECK_VALUE(max_draft >= 0 && max_draft <= kMaxDraft, "max_draft is ", max_draft, "; it must be from 0 to ",
                    kMaxDraft);
  const int64_t lanes = plan.lanes();
  TORCH_CHECK_INDEX(drafter == kAutoDrafter || drafter == kPromptLookup || (drafter > 0 && drafter < lanes),
                    "drafter is ", drafter, "; it must be a lane from 1 to ", lanes, " - 1");
  const bool drafts = plan.drafter >= 0 && max_draft > 0 && (drafter == kAutoDrafter || drafter == plan.drafter);
  check_prompts(request.prompts, request.experts, plan, vocab_sizes, max_context, 1, drafts);
  validate(request.rule, static_cast<int>(request.experts.size()));
  for (const int64_t token : request.prompts[0].tokens) {  // penalties count them
    TORCH_CHECK_VALUE(token < plan.vocab, "the prompt holds token ", token, ", but the vocabulary has ", plan.vocab,
                      " tokens");
  }
  TORCH_CHECK_VALUE(drafter < 0 || !request.prompts[drafter].tokens.empty(), "lane ", drafter,
                    " is to draft, but no chosen expert needs it");
}

void check_score(const ScoreRequest& request, const FusionPlan& plan, const std::vector<int64_t>& vocab_sizes,
                 int64_t max_context) {
  for (const std::vector<int64_t>& tokens : request.continuations) {
    TORCH_CHECK_VALUE(!tokens.empty(), "a continuation has no tokens");
    for (const int64_t token : tokens) {
      TORCH_CHECK_INDEX(token >= 0 && token < plan.vocab, "token id ", token, " is outside the vocabulary of ",
                        plan.vocab);
    }
  }
  // The last token is not read.
  check_prompts(request.prompts, request.experts, plan, vocab_sizes, max_context, request.longest() - 1,
                /*drafts=*/false);
  validate(request.rule, static_cast<int>(request.experts.size()));
}

}  // namespace dlf
