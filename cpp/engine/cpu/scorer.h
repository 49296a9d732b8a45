#pragma once

#include <ATen/core/Tensor.h>

#include <memory>
#include <span>
#include <utility>
#include <vector>

#include "engine/cpu/fusion_rows.h"
#include "engine/cpu/model.h"
#include "engine/scoring.h"
#include "sampling/cpu/sweep.h"
#include "support/thread_team.h"

namespace dlf::cpu {

// Scores continuations on the CPU: their positions go through the models as those of prompts do, all with logits, and
// are rows of one solve.
class Scorer final : public ScoringRows {
 public:
  Scorer(const FusionPlan& plan, std::vector<Model>& models, ThreadTeam& team)
      : plan_(plan), models_(models), team_(team) {}

  void begin(const ScoreRequest& request, int64_t rows) override;
  void end() noexcept override {}
  void begin_round() override;
  void use_prompts(std::span<const Lane> lanes) override;
  void read(std::span<const Lane> lanes, std::span<const int64_t> tokens, int64_t position) override;
  void solve(const ScoreRequest& request, int64_t step, std::span<Target> targets) override;

 private:
  // A row's distribution over the vocabulary.
  struct Distribution {
    const float* logits;
    Peak peak;
    double log_total;
    int bad_model;
  };

  void find_total(Distribution& row, double* block_sums) const;
  const float* logits(int64_t lane, int64_t row) const { return lanes_[lane].first + row * lanes_[lane].second; }

  const FusionPlan& plan_;
  std::vector<Model>& models_;
  ThreadTeam& team_;

  // Allocated by the first begin(). Rows beyond every continuation's length stay untouched.
  std::vector<at::Tensor> logits_;           // of each lane: [most rows, vocab]
  std::vector<Distribution> distributions_;  // [most rows]
  std::vector<double> block_sums_;           // [most rows, blocks]
  std::unique_ptr<FusionRows> fusion_;

  int64_t rows_ = 0;                                     // made by read() or use_prompts()
  std::vector<std::pair<const float*, int64_t>> lanes_;  // a lane's first row, and the stride of its rows
};

}  // namespace dlf::cpu
