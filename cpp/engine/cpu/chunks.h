#pragma once

#include <vector>

#include "engine/cpu/model.h"
#include "engine/options.h"
#include "engine/plan.h"
#include "engine/prompt.h"

namespace dlf::cpu {

// Reads chunks of prompts on the CPU.
class ChunkReader final : public dlf::ChunkReader {
 public:
  // Adds its seconds to `timings`.
  ChunkReader(const FusionPlan& plan, std::vector<Model>& models, StepTimings& timings)
      : plan_(plan), models_(models), timings_(timings) {}

  // A running request waits for about one chunk between two tokens, so chunks are as short as fast products allow.
  int64_t most_tokens() const override { return ops::kCacheBlock; }
  int64_t most_chunks() const override { return Decoder::kPassTokens / most_tokens(); }
  void read(const Chunk& chunk) override;
  void read_again(const Chunk& chunk) override;
  int64_t logits_bytes(int64_t lane) const override {
    return models_[plan_.lane_model[lane]].vocab() * static_cast<int64_t>(sizeof(float));
  }
  at::Tensor save_logits(const Chunk& chunk) override;
  void restore_logits(const Chunk& chunk, const at::Tensor& from) override;
  void release(at::Tensor /*logits*/) override {}  // no work is queued

 private:
  Model& model(const Chunk& chunk) const { return models_[plan_.lane_model[chunk.lane]]; }
  double& seconds(const Chunk& chunk) const {
    return plan_.lane_model[chunk.lane] == plan_.lane_model[0] ? timings_.large : timings_.small;
  }

  const FusionPlan& plan_;
  std::vector<Model>& models_;
  StepTimings& timings_;
  float* last_logits_ = nullptr;  // of the last chunk read
};

}  // namespace dlf::cpu
