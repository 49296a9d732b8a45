#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <span>
#include <vector>

#include "engine/cuda/sequences.h"
#include "engine/options.h"
#include "sampling/cuda/sampler_state.h"
#include "support/cuda/runtime.h"

namespace dlf::cuda {

// The memory of a SequenceTable and its Ring: on the large model's device what steps read and write, on the host what
// they gave.
class SequenceMemory {
 public:
  // What steps work on beside it. max_tokens: of all sequences in one step.
  struct Parts {
    std::span<const ModelRows> models;
    const SamplerState& sampler;
    const FusionRecord* fusions;  // null without experts
    int experts;
    int max_tokens;
    int top_capacity;
  };
  SequenceMemory(const EngineOptions& options, const Parts& parts, Queue& queue);

  const SequenceTable& table() const { return args_.table; }
  const DraftTable& draft() const { return args_.draft; }

  // Queues advance() of the first `batch` sequences: their next tokens, or `count` drafted ones each.
  void advance(int batch, int count, bool ends_step, Stream stream) const;

  int64_t steps_done() const;  // steps whose records the host can read

  // What one of the last kRing steps gave a sequence: up to kStepTokens tokens.
  struct Given {
    const StepRecord& record;
    std::span<const int32_t> top_tokens;
    std::span<const float> top_logprobs;
  };
  Given given(int64_t step, int64_t slot, int token) const;

 private:
  AdvanceArgs args_ = {};
  std::vector<at::Tensor> memory_;  // that the arguments point to
};

}  // namespace dlf::cuda
