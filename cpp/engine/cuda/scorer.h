#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <memory>
#include <span>
#include <vector>

#include "engine/cuda/prompts.h"
#include "engine/plan.h"
#include "engine/score.h"
#include "fusion/cuda/solver.h"
#include "support/cuda/runtime.h"

namespace dlf::cuda {

// CpuScorer on GPUs: scores one request beside the steps that are on their way, in rows that no sequence has. All it
// takes of the devices' memory goes back with it.
class Scorer {
 public:
  // `row` is that of the spare sequence, `step` the next one to be launched, `chunk` how many positions are held.
  Scorer(const FusionPlan& plan, std::vector<DeviceModel>& models, PromptReader& prompts, int row, int64_t step,
         int64_t chunk);
  ~Scorer();
  Scorer(const Scorer&) = delete;
  Scorer& operator=(const Scorer&) = delete;

  std::vector<Score> score(const ScoreRequest& request, const Poll& poll);

 private:
  // What a solve gave, on the host.
  struct Solved {
    std::vector<FusionRecord> records;  // of each row; empty where nothing was fused
    std::vector<double> log_totals;     // log Σ exp of each row
    std::vector<int64_t> best;          // the most probable token of each row
    std::vector<float> logits;          // of the targets
  };

  int row_of(size_t lane) const;  // of its model
  Queue& main() { return *models_[plan_.lane_model[0]].queue; }
  void read_prompts(const ScoreRequest& request, const Poll& poll);
  void allocate(int64_t rows, bool fused);
  void read(std::span<const int64_t> tokens, int64_t position);
  Solved solve(int64_t rows, const ScoreRequest& request, std::span<const int64_t> targets);
  void fuse(int64_t rows, const ScoreRequest& request, Solved& solved);
  static void take(const Solved& solved, size_t row, size_t target, int64_t token, std::span<const int> experts,
                   Score& score);

  const FusionPlan& plan_;
  std::vector<DeviceModel>& models_;
  PromptReader& prompts_;
  int row_;
  int64_t step_;
  int64_t chunk_;
  std::unique_ptr<Event> begun_;
  std::vector<DeviceLane> lanes_;
  std::vector<at::Tensor> logits_;  // of each lane: [rows, vocab]
  std::vector<at::Tensor> shared_;  // the same on the device that solves
  std::vector<at::Tensor> rows_;    // what is solved: these, or the last logits of the prompts
  at::Tensor fused_;                // [rows, vocab]
};

}  // namespace dlf::cuda
