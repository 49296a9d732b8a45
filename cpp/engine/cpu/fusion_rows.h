#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <memory>
#include <span>
#include <vector>

#include "engine/plan.h"
#include "fusion/cpu/solver.h"
#include "support/thread_team.h"

namespace dlf::cpu {

// Rows of one solve on the CPU. Each is a position of a sequence or of a continuation, with its logits wherever the
// models have written them. The constructor takes all memory; unused rows stay untouched.
class FusionRows {
 public:
  FusionRows(const FusionPlan& plan, int64_t most_rows, ThreadTeam& team);

  void clear() { count_ = 0; }

  // Adds a row that fuses `experts` by `rule`, both valid until it is solved; logits(lane) returns a lane's logits.
  // `gate`: that of the rule.
  template <typename Logits>
  void add(std::span<const int> experts, const Rule& rule, GateState gate, Logits&& logits) {
    const size_t at = count_ * plan_.experts.size();
    for (size_t t = 0; t < experts.size(); ++t) {
      const ExpertLanes& lanes = plan_.experts[experts[t]];
      expert_logits_[at + t] = logits(lanes.expert);
      base_logits_[at + t] = lanes.base == kNoLane ? uniform_.const_data_ptr<float>() : logits(lanes.base);
    }
    add({logits(0), &expert_logits_[at], &base_logits_[at], &rule, static_cast<int>(experts.size()), experts.data(),
         gate});
  }

  // Whether a gate that reads no experts is open.
  bool is_open(const Gate& gate, const float* large) { return solver_->is_open(gate, large); }

  // Computes α and the fused logits of the added rows.
  void solve();

  // Results in the order of add(), valid until the next solve().
  FusionResult* results() { return results_.data(); }

 private:
  void add(const FusionInput& input);

  const FusionPlan& plan_;
  std::unique_ptr<FusionSolver> solver_;     // null without experts
  std::vector<const float*> expert_logits_;  // [rows, experts]
  std::vector<const float*> base_logits_;
  std::vector<FusionInput> inputs_;
  std::vector<FusionResult> results_;
  std::vector<double> alpha_, target_f_, target_g_;  // [rows, experts]
  at::Tensor fused_;                                 // [rows, vocab]
  at::Tensor uniform_;                               // [vocab], of experts without a base
  size_t count_ = 0;
};

}  // namespace dlf::cpu
