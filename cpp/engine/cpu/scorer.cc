#include "engine/cpu/scorer.h"

#include <ATen/ops/empty.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>

#include "engine/step_loop.h"

namespace dlf {
namespace {

// Slots for lanes, which go back however scoring ends.
class Slots {
 public:
  Slots(const FusionPlan& plan, std::vector<CpuModel>& models, std::vector<Lane>& lanes)
      : plan_(plan), models_(models), lanes_(lanes) {
    for (size_t i = 0; i < lanes.size(); ++i) {
      if (lanes[i].used()) {
        lanes[i].slot = cache(i).acquire();
      }
    }
  }
  ~Slots() {
    for (size_t i = 0; i < lanes_.size(); ++i) {
      if (lanes_[i].slot >= 0) {
        cache(i).release(lanes_[i].slot);
      }
    }
  }
  Slots(const Slots&) = delete;
  Slots& operator=(const Slots&) = delete;

 private:
  KVCache& cache(size_t lane) { return models_[plan_.lane_model[lane]].decoder->cache(); }

  const FusionPlan& plan_;
  std::vector<CpuModel>& models_;
  std::vector<Lane>& lanes_;
};

}  // namespace

// Memory that no request is long enough for stays untouched.
CpuScorer::CpuScorer(const FusionPlan& plan, std::vector<CpuModel>& models, PromptReader& prompts, ThreadTeam& team,
                     int64_t chunk)
    : plan_(plan), models_(models), prompts_(prompts), team_(team), rows_(chunk), fusion_(plan, chunk, team) {
  for (const int64_t model : plan.lane_model) {
    logits_.push_back(at::empty({rows_, models[model].vocab()}, at::kFloat));
  }
  lanes_.resize(plan.lane_model.size());
  distributions_.resize(rows_);
  block_sums_.resize(rows_ * sampling_blocks(plan.vocab));
}

std::vector<Score> CpuScorer::score(const ScoreRequest& request, const Poll& poll) {
  std::vector<Lane> lanes(request.prompts.size());
  for (size_t i = 0; i < lanes.size(); ++i) {
    lanes[i].prompt = request.prompts[i];
  }
  const Slots slots(plan_, models_, lanes);
  read_prompts(lanes, poll);

  // What follows the prompt is one distribution for all.
  std::vector<Score> scores(request.continuations.size());
  for (size_t i = 0; i < lanes.size(); ++i) {
    lanes_[i] = {lanes[i].used() ? lanes[i].logits[0] : nullptr, 0};
  }
  solve(1, request);
  for (size_t i = 0; i < scores.size(); ++i) {
    take(0, request.continuations[i][0], request.experts, scores[i]);
  }
  // A continuation overwrites the one before it in the caches. Its last token need not be read.
  for (size_t i = 0; i < scores.size(); ++i) {
    const std::span tokens(request.continuations[i]);
    const auto size = static_cast<int64_t>(tokens.size());
    for (int64_t begin = 1; begin < size && scores[i].error.empty(); begin += rows_) {
      const int64_t count = std::min(rows_, size - begin);
      poll();
      read(lanes, tokens.subspan(begin - 1, count), begin - 1);
      solve(count, request);
      for (int64_t row = 0; row < count; ++row) {
        take(row, tokens[begin + row], request.experts, scores[i]);
      }
    }
  }
  return scores;
}

// The last logits of all lanes lie where those of a step do: they hold until the next poll, which may be one.
void CpuScorer::read_prompts(std::vector<Lane>& lanes, const Poll& poll) {
  int64_t cached_tokens = 0;
  StepTimings timings;
  while (true) {
    for (CpuModel& model : models_) {
      model.logits_used = 0;  // those of the last step, which has been delivered
    }
    if (prompts_.read(lanes, cached_tokens, timings)) {
      return;
    }
    poll();
  }
}

// Tokens of a continuation, from its `position` on.
void CpuScorer::read(const std::vector<Lane>& lanes, std::span<const int64_t> tokens, int64_t position) {
  for (size_t i = 0; i < lanes.size(); ++i) {
    if (!lanes[i].used()) {
      continue;
    }
    auto* logits = logits_[i].mutable_data_ptr<float>();
    models_[plan_.lane_model[i]].decoder->prefill(tokens, lanes[i].slot, lanes[i].length + position, logits,
                                                  /*all_logits=*/true, plan_.adapter_of(static_cast<int64_t>(i)));
    lanes_[i] = {logits, logits_[i].size(1)};
  }
}

void CpuScorer::solve(int64_t rows, const ScoreRequest& request) {
  for (int64_t row = 0; row < rows; ++row) {
    distributions_[row] = {logits(0, row), {}, 0, kNoBadModel};
  }
  if (!request.experts.empty()) {
    fusion_.clear();
    for (int64_t row = 0; row < rows; ++row) {
      fusion_.add(request.experts, request.rule, [&](int64_t lane) { return logits(lane, row); });
    }
    fusion_.solve();
    for (int64_t row = 0; row < rows; ++row) {
      distributions_[row].logits = fusion_.results()[row].logits;
      distributions_[row].bad_model = fusion_.results()[row].bad_model;
    }
  }
  const int64_t blocks = sampling_blocks(plan_.vocab);
  team_.parallel_for(rows, 1, [&](int64_t begin, int64_t end) {
    for (int64_t row = begin; row < end; ++row) {
      measure(distributions_[row], &block_sums_[row * blocks]);
    }
  });
}

// The most probable token and log Σ exp, as the sampler has them.
void CpuScorer::measure(Distribution& row, double* block_sums) const {
  static const auto find_peak = DLF_CPU_DISPATCH(find_peak);
  static const auto exp_weights = DLF_CPU_DISPATCH(exp_weights);
  if (row.bad_model != kNoBadModel) {
    return;
  }
  find_peak(row.logits, plan_.vocab, &row.peak);
  exp_weights(row.logits, plan_.vocab, row.peak.value, 1.0F, nullptr, block_sums);
  row.log_total = std::log(std::accumulate(block_sums, block_sums + sampling_blocks(plan_.vocab), 0.0));
  row.log_total += row.peak.value;
  if (!std::isfinite(row.log_total)) {  // of the large model alone, as fused logits were looked at
    const bool empty = std::all_of(row.logits, row.logits + plan_.vocab,
                                   [](float logit) { return logit == -std::numeric_limits<float>::infinity(); });
    row.bad_model = empty ? kEmptySupport : 0;
  }
}

void CpuScorer::take(int64_t row, int64_t token, std::span<const int> experts, Score& score) const {
  const Distribution& from = distributions_[row];
  if (add_failure(score, from.bad_model)) {
    return;
  }
  score.logprobs.push_back(from.logits[token] - from.log_total);
  score.greedy.push_back(from.peak.index == token);
  if (experts.empty()) {
    score.f.push_back(0);
    score.g.push_back(0);
    return;
  }
  const FusionResult& fused = fusion_.results()[row];
  score.alpha.insert(score.alpha.end(), fused.alpha, fused.alpha + experts.size());
  score.f.push_back(fused.f);
  score.g.push_back(fused.g);
}

}  // namespace dlf
