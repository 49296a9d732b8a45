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

// Memory of a SequenceTable, on the large model's device, and of its Ring, on the host.
class SequenceMemory {
 public:
  // Other memory that steps use. max_tokens: of all sequences in one step.
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

  // Queues advance() for the first `batch` sequences: their next tokens, or `count` drafted ones each.
  void advance(int batch, int count, bool traced, bool ends_step, Stream stream) const;

  // Queues show_draft() for the first `batch` sequences.
  void show_draft(int batch, int count, Stream stream) const;

  int32_t* own_tokens() const { return args_.own_tokens; }

  int64_t steps_done() const;    // steps whose records the host can read
  int64_t drafts_shown() const;  // the same for the drafted tokens of steps that show them
  const int32_t* drafted() const { return args_.ring.drafted; }  // as DraftTable::tokens

  // A token that one of the last kRing steps gave a sequence, out of up to kStepTokens.
  struct Given {
    const StepRecord& record;
    std::span<const int32_t> top_tokens;
    std::span<const float> top_logprobs;
  };
  Given given(int64_t step, int64_t slot, int token) const;

 private:
  AdvanceArgs args_ = {};
  std::vector<at::Tensor> memory_;  // args_ points into these
};

}  // namespace dlf::cuda
