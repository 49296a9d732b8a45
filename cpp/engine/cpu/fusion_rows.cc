#include "engine/cpu/fusion_rows.h"

#include <ATen/ops/empty.h>
#include <ATen/ops/zeros.h>

namespace dlf::cpu {

FusionRows::FusionRows(const FusionPlan& plan, int64_t most_rows, ThreadTeam& team) : plan_(plan) {
  const auto experts = static_cast<int64_t>(plan.experts.size());
  if (experts == 0) {
    return;
  }
  solver_ = std::make_unique<FusionSolver>(static_cast<int>(experts), plan.vocab, static_cast<int>(most_rows), team);
  expert_logits_.resize(most_rows * experts);
  base_logits_.resize(most_rows * experts);
  alpha_.resize(most_rows * experts);
  target_f_.resize(most_rows * experts);
  target_g_.resize(most_rows * experts);
  inputs_.resize(most_rows);
  results_.resize(most_rows);
  fused_ = at::empty({most_rows, plan.vocab}, at::kFloat);
  uniform_ = at::zeros({plan.vocab}, at::kFloat);
}

void FusionRows::add(const FusionInput& input) {
  const size_t at = count_ * plan_.experts.size();
  inputs_[count_] = input;
  FusionResult& result = results_[count_];
  result.alpha = &alpha_[at];
  result.target_f = &target_f_[at];
  result.target_g = &target_g_[at];
  result.logits = fused_.mutable_data_ptr<float>() + static_cast<int64_t>(count_) * plan_.vocab;
  ++count_;
}

void FusionRows::solve() {
  if (count_ > 0) {
    solver_->solve({inputs_.data(), count_}, {results_.data(), count_});
  }
}

}  // namespace dlf::cpu
