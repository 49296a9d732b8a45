#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <memory>
#include <span>
#include <vector>

#include "engine/cuda/chunks.h"
#include "engine/cuda/device_models.h"
#include "engine/cuda/hook_rows.h"
#include "engine/cuda/step_clock.h"
#include "engine/plan.h"
#include "engine/scoring.h"
#include "fusion/cuda/solver.h"
#include "support/cuda/runtime.h"

namespace dlf::cuda {

// Scores one request on GPUs, beside queued steps. end() frees all device memory that it took.
class Scorer final : public ScoringRows {
 public:
  Scorer(const FusionPlan& plan, DeviceModels& models, ChunkReader& chunks, StepClock& clock);

  void begin(const ScoreRequest& request, int64_t rows) override;
  void end() noexcept override;
  void end_round() override;
  void use_prompts(std::span<const Lane> lanes) override;
  void read(std::span<const Lane> lanes, std::span<const int64_t> tokens, int64_t position) override;
  void solve(const ScoreRequest& request, int64_t step, std::span<Target> targets) override;

 private:
  DeviceModel& model(size_t lane) { return models_.all()[plan_.lane_model[lane]]; }
  Queue& main() { return models_.main(); }
  std::vector<int64_t> own_ids(size_t lane, std::span<const int64_t> tokens) const;
  std::vector<FusionRecord> fuse(const ScoreRequest& request, int64_t step, bool& failed);
  bool show(const ScoreRequest& request, int64_t step, const FusedRows& fused);

  const FusionPlan& plan_;
  DeviceModels& models_;
  ChunkReader& chunks_;
  StepClock& clock_;
  std::unique_ptr<Event> begun_;
  std::vector<at::Tensor> written_;  // of each lane: [most rows, vocab of the model]
  std::vector<at::Tensor> logits_;   // the same by the large model's ids
  std::vector<at::Tensor> shared_;   // the same on the device that solves
  at::Tensor fused_;                 // [most rows, vocab]
  std::vector<at::Tensor> rows_;     // rows to solve: shared_, or the last logits of the prompts
  int64_t count_ = 0;                // rows to solve
};

}  // namespace dlf::cuda
