#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <deque>
#include <memory>

#include "engine/cuda/device_models.h"
#include "engine/cuda/step_clock.h"
#include "engine/plan.h"
#include "engine/prompt.h"
#include "support/cuda/runtime.h"

namespace dlf::cuda {

// Reads chunks of prompts on GPUs, each on the stream of its model, between two steps.
class ChunkReader final : public dlf::ChunkReader {
 public:
  ChunkReader(const FusionPlan& plan, DeviceModels& models, StepClock& clock);

  void begin() override;
  void end() override;
  int64_t most_tokens() const override { return kChunkTokens; }
  void read(const Chunk& chunk) override;
  void read_again(const Chunk& chunk) override;
  int64_t logits_bytes(int64_t lane) const override {
    return model(lane).vocab() * static_cast<int64_t>(sizeof(float));
  }
  // In host memory, so that the memory of a device does not depend on the prompts.
  at::Tensor save_logits(const Chunk& chunk) override;
  void restore_logits(const Chunk& chunk, const at::Tensor& from) override;
  void release(at::Tensor memory) override;

  // Frees the memory that was released before a step that is done now; until then a device may have used it.
  void free(int64_t steps_done);

 private:
  struct Released {
    int64_t step;  // the first one launched after the release
    at::Tensor memory;
  };

  DeviceModel& model(int64_t lane) const { return models_.all()[plan_.lane_model[lane]]; }
  float* logits(const Chunk& chunk) const;
  const int32_t* send(const Chunk& chunk);
  void finish(const Chunk& chunk);
  void publish(const Chunk& chunk);

  const FusionPlan& plan_;
  DeviceModels& models_;
  StepClock& clock_;
  std::unique_ptr<Event> begun_;  // marks the work queued before on the main stream
  std::deque<Released> released_;
};

}  // namespace dlf::cuda
