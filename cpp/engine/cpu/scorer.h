#pragma once

#include <ATen/core/Tensor.h>

#include <memory>
#include <span>
#include <utility>
#include <vector>

#include "engine/cpu/fusion_rows.h"
#include "engine/cpu/prompts.h"
#include "engine/score.h"
#include "sampling/cpu/sweep.h"
#include "support/thread_team.h"

namespace dlf {

// Scores continuations on the processor: their positions go through the models as those of prompts do, with the logits
// of all of them, and are rows of one solve. Runs between the steps of a CpuStepLoop, in slots that no sequence has.
class CpuScorer {
 public:
  // `chunk` is how many positions are held.
  CpuScorer(const FusionPlan& plan, std::vector<CpuModel>& models, PromptReader& prompts, ThreadTeam& team,
            int64_t chunk);

  std::vector<Score> score(const ScoreRequest& request, const Poll& poll);

 private:
  // A distribution that a token is drawn from, or would be.
  struct Distribution {
    const float* logits;
    Peak peak;
    double log_total;
    int bad_model;
  };

  void read_prompts(std::vector<Lane>& lanes, const Poll& poll);
  void read(const std::vector<Lane>& lanes, std::span<const int64_t> tokens, int64_t position);
  void solve(int64_t rows, const ScoreRequest& request);
  void measure(Distribution& row, double* block_sums) const;
  void take(int64_t row, int64_t token, std::span<const int> experts, Score& score) const;
  const float* logits(int64_t lane, int64_t row) const { return lanes_[lane].first + row * lanes_[lane].second; }

  const FusionPlan& plan_;
  std::vector<CpuModel>& models_;
  PromptReader& prompts_;
  ThreadTeam& team_;
  int64_t rows_;  // positions at a time

  std::vector<at::Tensor> logits_;                       // of each lane: [rows, vocab]
  std::vector<std::pair<const float*, int64_t>> lanes_;  // where a lane's rows now are, and how far apart
  std::vector<Distribution> distributions_;              // [rows]
  std::vector<double> block_sums_;                       // [rows, blocks]
  FusionRows fusion_;
};

}  // namespace dlf
