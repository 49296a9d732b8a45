#include "engine/cpu/scorer.h"

#include <ATen/ops/empty.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>

#include "engine/cpu/hook_rows.h"

namespace dlf::cpu {

void Scorer::begin(const ScoreRequest& /*request*/, int64_t rows) {
  if (fusion_) {
    return;
  }
  logits_.clear();
  for (const int64_t model : plan_.lane_model) {
    logits_.push_back(at::empty({rows, models_[model].vocab()}, at::kFloat));
  }
  lanes_.resize(plan_.lane_model.size());
  distributions_.resize(rows);
  block_sums_.resize(rows * sampling_blocks(plan_.vocab));
  fusion_ = std::make_unique<FusionRows>(plan_, rows, team_);
}

// Frees the logits of steps and of the last round.
void Scorer::begin_round() {
  for (Model& model : models_) {
    model.clear();
  }
}

void Scorer::use_prompts(std::span<const Lane> lanes) {
  rows_ = 1;
  for (size_t i = 0; i < lanes.size(); ++i) {
    const auto lane = static_cast<int64_t>(i);
    lanes_[i] = {lanes[i].used() ? logits_of(plan_, models_, lanes, lane, 0) : nullptr, 0};
  }
}

void Scorer::read(std::span<const Lane> lanes, std::span<const int64_t> tokens, int64_t position) {
  rows_ = static_cast<int64_t>(tokens.size());
  for (size_t i = 0; i < lanes.size(); ++i) {
    if (!lanes[i].used()) {
      continue;
    }
    auto* logits = logits_[i].mutable_data_ptr<float>();
    Model& model = models_[plan_.lane_model[i]];
    model.read(model.own_ids(tokens), lanes[i].cache_slot, lanes[i].length + position, logits, /*all_logits=*/true,
               plan_.adapter_of(static_cast<int64_t>(i)));
    lanes_[i] = {logits, logits_[i].size(1)};
  }
}

void Scorer::solve(const ScoreRequest& request, int64_t step, std::span<Target> targets) {
  const bool fused = !request.experts.empty();
  fusion_->clear();
  for (int64_t row = 0; row < rows_ && fused; ++row) {
    fusion_->add(request.experts, request.rule, GateState::undecided, [&](int64_t lane) { return logits(lane, row); });
  }
  fusion_->solve();
  FusionResult* results = fusion_->results();
  bool failed = false;
  if (request.hook) {
    HookRows rows = hook_rows({plan_, request.experts, rows_, fused ? results : nullptr},
                              [&](int64_t lane, int64_t row) { return logits(lane, row); });
    rows.step = step;
    failed = !request.hook(rows);
  }
  for (int64_t row = 0; row < rows_; ++row) {
    distributions_[row] = {
        fused ? results[row].logits : logits(0, row), {}, 0, fused ? results[row].bad_model : kNoBadModel};
    distributions_[row].bad_model = failed ? kHookFailed : distributions_[row].bad_model;
  }
  const int64_t blocks = sampling_blocks(plan_.vocab);
  team_.parallel_for(rows_, 1, [&](int64_t begin, int64_t end) {
    for (int64_t row = begin; row < end; ++row) {
      find_total(distributions_[row], &block_sums_[row * blocks]);
    }
  });
  for (size_t i = 0; i < targets.size(); ++i) {
    const size_t row = rows_ == 1 ? 0 : i;
    const Distribution& from = distributions_[row];
    Target& target = targets[i];
    target.bad_model = from.bad_model;
    target.logprob = from.logits[target.token] - from.log_total;
    target.greedy = from.peak.index == target.token;
    if (fused) {
      target.f = results[row].f;
      target.g = results[row].g;
      std::copy_n(results[row].alpha, request.experts.size(), target.alpha);
    }
  }
}

// Finds the most probable token and log Σ exp, as the sampler does.
void Scorer::find_total(Distribution& row, double* block_sums) const {
  static const auto find_peak = DLF_CPU_DISPATCH(find_peak);
  static const auto exp_weights = DLF_CPU_DISPATCH(exp_weights);
  if (row.bad_model != kNoBadModel) {
    return;
  }
  find_peak(row.logits, plan_.vocab, &row.peak);
  exp_weights(row.logits, plan_.vocab, row.peak.value, 1.0F, nullptr, block_sums);
  row.log_total = std::log(std::accumulate(block_sums, block_sums + sampling_blocks(plan_.vocab), 0.0));
  row.log_total += row.peak.value;
  if (!std::isfinite(row.log_total)) {  // of the large model alone: the solver has checked fused logits
    const bool empty = std::all_of(row.logits, row.logits + plan_.vocab,
                                   [](float logit) { return logit == -std::numeric_limits<float>::infinity(); });
    row.bad_model = empty ? kEmptySupport : 0;
  }
}

}  // namespace dlf::cpu
