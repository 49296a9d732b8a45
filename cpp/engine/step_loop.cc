#include "engine/step_loop.h"

#include <c10/util/Exception.h>

#include <algorithm>

#include "fusion/rule.h"

namespace dlf {
namespace {

constexpr int64_t kMostLanes = 64;

// Of a request with these experts, that `more` tokens are to follow in the caches.
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
    needed[plan.experts[expert].base] = true;
  }
  for (size_t i = 0; i < prompts.size(); ++i) {
    const auto length = static_cast<int64_t>(prompts[i].tokens.size());
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

void check_plan(const FusionPlan& plan, const Models& models, const Adapters& adapters, int64_t max_batch,
                int64_t max_context) {
  TORCH_CHECK_VALUE(max_batch >= 1 && max_batch <= 1024, "max_batch is ", max_batch, "; it must be from 1 to 1024");
  TORCH_CHECK_VALUE(max_context >= 2 && max_context <= kMostContext, "max_context is ", max_context,
                    "; it must be from 2 to ", kMostContext);
  const auto lanes = static_cast<int64_t>(plan.lane_model.size());
  TORCH_CHECK_VALUE(lanes >= 1 && lanes <= kMostLanes, "a plan has ", lanes, " lanes; it needs 1 to ", kMostLanes);
  TORCH_CHECK_VALUE(plan.vocab >= 1, "vocab is ", plan.vocab, "; it must be at least 1");
  for (const ExpertLanes& expert : plan.experts) {
    TORCH_CHECK_INDEX(std::min(expert.expert, expert.base) >= 0 && std::max(expert.expert, expert.base) < lanes,
                      "an expert on the lanes ", expert.expert, " and ", expert.base, " of ", lanes);
  }
  for (const int64_t model : plan.lane_model) {
    TORCH_CHECK_INDEX(model >= 0 && model < static_cast<int64_t>(models.size()), "lane on model ", model, " of ",
                      models.size());
  }
  TORCH_CHECK_VALUE(adapters.empty() || adapters.size() == models.size(), "adapters must be listed for each model");
  TORCH_CHECK_VALUE(plan.lane_adapter.empty() || plan.lane_adapter.size() == plan.lane_model.size(),
                    "lane_adapter must have an entry for each lane");
  TORCH_CHECK_INDEX(
      plan.drafter == -1 || (plan.drafter > 0 && plan.drafter < static_cast<int64_t>(plan.lane_model.size())),
      "the drafter's lane ", plan.drafter, " of ", plan.lane_model.size());
  for (size_t lane = 0; lane < plan.lane_model.size(); ++lane) {
    const int64_t count = adapters.empty() ? 0 : static_cast<int64_t>(adapters[plan.lane_model[lane]].size());
    const int64_t adapter = plan.adapter_of(static_cast<int64_t>(lane));
    TORCH_CHECK_INDEX(adapter >= -1 && adapter < count, "lane ", lane, " has adapter ", adapter, " of ", count);
  }
  if (!plan.experts.empty()) {
    check_expert_count(static_cast<int>(plan.experts.size()));
  }
  for (size_t i = 0; i < models.size(); ++i) {
    TORCH_CHECK_VALUE(models[i]->config().vocab_size >= plan.vocab, "model ", i, " has fewer than ", plan.vocab,
                      " logits");
  }
}

std::vector<int64_t> vocab_sizes(const Models& models) {
  std::vector<int64_t> sizes;
  for (const std::shared_ptr<const Weights>& model : models) {
    sizes.push_back(model->config().vocab_size);
  }
  return sizes;
}

void check_request(const Request& request, const FusionPlan& plan, const std::vector<int64_t>& vocab_sizes,
                   int64_t max_context) {
  TORCH_CHECK_VALUE(request.max_new_tokens >= 1, "max_new_tokens must be at least 1");
  const auto& [max_draft, drafter, adaptive] = request.speculation;
  TORCH_CHECK_VALUE(max_draft >= 0 && max_draft <= kMaxDraft, "max_draft is ", max_draft, "; it must be from 0 to ",
                    kMaxDraft);
  const auto lanes = static_cast<int64_t>(plan.lane_model.size());
  TORCH_CHECK_INDEX(drafter == kAutoDrafter || drafter == kPromptLookup || (drafter > 0 && drafter < lanes), "drafter ",
                    drafter, " of ", lanes, " lanes");
  const bool drafts = plan.drafter >= 0 && max_draft > 0 && (drafter == kAutoDrafter || drafter == plan.drafter);
  check_prompts(request.prompts, request.experts, plan, vocab_sizes, max_context, 1, drafts);
  validate(request.rule, static_cast<int>(request.experts.size()));
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
  // The last one is not read.
  check_prompts(request.prompts, request.experts, plan, vocab_sizes, max_context, request.longest() - 1,
                /*drafts=*/false);
  validate(request.rule, static_cast<int>(request.experts.size()));
}

}  // namespace dlf
