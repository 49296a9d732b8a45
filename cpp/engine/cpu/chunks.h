#pragma once

#include <vector>

#include "engine/cpu/model.h"
#include "engine/options.h"
#include "engine/plan.h"
#include "engine/prompt.h"
#include "support/thread_team.h"

namespace dlf::cpu {

// Reads chunks of prompts on the CPU.
class ChunkReader final : public dlf::ChunkReader {
 public:
  // Adds its seconds to `timings`.
  ChunkReader(const FusionPlan& plan, std::vector<Model>& models, ThreadTeam& team, StepTimings& timings)
      : plan_(plan), models_(models), team_(team), timings_(timings) {}

  int64_t most_tokens() const override { return Decoder::kChunkTokens; }
  void read(const Chunk& chunk) override;
  ChunkBytes bytes(const Chunk& chunk) const override;
  void save(const Chunk& chunk, const PrefixChunk& to) override;
  void restore(const Chunk& chunk, const PrefixChunk& from) override;
  at::Tensor allocate(int64_t lane, int64_t bytes) override;
  void release(at::Tensor /*memory*/) override {}  // no work is queued

 private:
  Model& model(const Chunk& chunk) const { return models_[plan_.lane_model[chunk.lane]]; }
  double& seconds(const Chunk& chunk) const {
    return plan_.lane_model[chunk.lane] == plan_.lane_model[0] ? timings_.large : timings_.small;
  }

  const FusionPlan& plan_;
  std::vector<Model>& models_;
  ThreadTeam& team_;
  StepTimings& timings_;
  float* last_logits_ = nullptr;  // of the last chunk read
};

}  // namespace dlf::cpu
