#include "engine/score.h"

#include "fusion/bad_model.h"

namespace dlf {
namespace {

constexpr int64_t kScoreBytes = 128 << 20;
constexpr int64_t kMostRows = 256;  // of a matrix product: more are not faster

}  // namespace

int64_t score_rows(const FusionPlan& plan, const std::vector<int64_t>& vocab_sizes) {
  int64_t logits = plan.vocab;  // fused
  for (const int64_t model : plan.lane_model) {
    logits += vocab_sizes[model];
  }
  return std::clamp<int64_t>(kScoreBytes / (logits * static_cast<int64_t>(sizeof(float))), 1, kMostRows);
}

bool add_failure(Score& score, int bad_model) {
  if (score.error.empty() && bad_model != kNoBadModel) {
    score.error =
        describe_bad_model(bad_model) + " at token " + std::to_string(score.logprobs.size()) + " of the continuation";
  }
  return !score.error.empty();
}

}  // namespace dlf
