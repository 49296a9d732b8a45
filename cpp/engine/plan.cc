#include "engine/plan.h"

#include <c10/util/Exception.h>

#include "engine/options.h"
#include "fusion/rule.h"

namespace dlf {

std::vector<int64_t> vocab_sizes(const Models& models) {
  std::vector<int64_t> sizes;
  for (const std::shared_ptr<const Weights>& model : models) {
    sizes.push_back(model->spec().vocab_size);
  }
  return sizes;
}

namespace {

void check_map(const FusionPlan& plan, int64_t model, int64_t vocab) {
  const auto& [feed, read] = plan.token_maps[model];
  TORCH_CHECK_VALUE(model != plan.lane_model[0], "the large model has a token map; its ids are those of the plan");
  TORCH_CHECK_VALUE(static_cast<int64_t>(feed.size()) == plan.vocab && feed.size() == read.size(),
                    "the token map of model ", model, " must have an entry for each of the ", plan.vocab, " ids");
  const auto inside = [&](int64_t least) { return [=](int32_t id) { return id >= least && id < vocab; }; };
  TORCH_CHECK_INDEX(
      std::all_of(feed.begin(), feed.end(), inside(0)) && std::all_of(read.begin(), read.end(), inside(-1)),
      "the token map of model ", model, " has an id outside its ", vocab, " logits");
}

}  // namespace

void check_plan(const FusionPlan& plan, const Models& models, const Adapters& adapters) {
  const int64_t lanes = plan.lanes();
  TORCH_CHECK_VALUE(lanes >= 1 && lanes <= kMostLanes, "a plan has ", lanes, " lanes; it needs 1 to ", kMostLanes);
  TORCH_CHECK_VALUE(plan.vocab >= 1, "vocab is ", plan.vocab, "; it must be at least 1");
  for (const ExpertLanes& expert : plan.experts) {
    TORCH_CHECK_INDEX(expert.expert >= 0 && expert.base >= kNoLane && std::max(expert.expert, expert.base) < lanes,
                      "an expert has the lanes ", expert.expert, " and ", expert.base, "; they must be below ", lanes,
                      " and at least 0, or ", kNoLane, " for no base");
  }
  for (const int64_t model : plan.lane_model) {
    TORCH_CHECK_INDEX(model >= 0 && model < static_cast<int64_t>(models.size()), "a lane runs on model ", model,
                      "; it must be at least 0 and below ", models.size());
  }
  TORCH_CHECK_VALUE(adapters.empty() || adapters.size() == models.size(), "adapters must be listed for each model");
  TORCH_CHECK_VALUE(plan.lane_adapter.empty() || plan.lane_adapter.size() == plan.lane_model.size(),
                    "lane_adapter must have an entry for each lane");
  TORCH_CHECK_INDEX(plan.drafter == -1 || (plan.drafter > 0 && plan.drafter < lanes), "the drafter's lane is ",
                    plan.drafter, "; it must be at least 1 and below ", lanes);
  for (int64_t lane = 0; lane < lanes; ++lane) {
    const int64_t count = adapters.empty() ? 0 : static_cast<int64_t>(adapters[plan.lane_model[lane]].size());
    const int64_t adapter = plan.adapter_of(lane);
    TORCH_CHECK_INDEX(adapter >= -1 && adapter < count, "lane ", lane, " has adapter ", adapter,
                      "; number of its model's adapters: ", count);
  }
  if (!plan.experts.empty()) {
    check_expert_count(static_cast<int>(plan.experts.size()));
  }
  TORCH_CHECK_VALUE(plan.token_maps.empty() || plan.token_maps.size() == models.size(),
                    "token_maps must have an entry for each model");
  for (size_t i = 0; i < models.size(); ++i) {
    TORCH_CHECK_VALUE(plan.lanes_of(static_cast<int64_t>(i)) > 0, "model ", i, " has no lane; leave it out");
    const int64_t vocab = models[i]->spec().vocab_size;
    if (plan.maps(static_cast<int64_t>(i))) {
      check_map(plan, static_cast<int64_t>(i), vocab);
    } else {
      TORCH_CHECK_VALUE(vocab >= plan.vocab, "model ", i, " has fewer than ", plan.vocab, " logits");
    }
  }
}

}  // namespace dlf
