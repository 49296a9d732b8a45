#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <span>

#include "engine/cuda/sequences.h"
#include "sampling/cuda/sampler_state.h"
#include "support/cuda/runtime.h"

namespace dlf::cuda {

// The memory of a SequenceTable and its Ring: on the large model's device what steps read and write, on the host what
// they gave.
class SequenceMemory {
 public:
  // max_tokens: of all sequences that a step drafts.
  SequenceMemory(int max_batch, int max_tokens, int top_capacity, Queue& queue);

  SequenceTable table(std::span<const ModelRows> models);

  DraftTable draft();

  // Queues advance() of the first `batch` sequences: their next tokens, or `count` drafted ones each.
  struct Sampled {
    const SamplerState& sampler;
    const FusionRecord* fusions;
    int experts;
  };
  void advance(const SequenceTable& table, const Sampled& sampled, int batch, int count, bool ends_step, Stream stream);
  const RowRule* rules() const { return static_cast<const RowRule*>(rules_.const_data_ptr()); }
  const int32_t* active() const { return active_.const_data_ptr<int32_t>(); }

  int64_t steps_done() const;  // steps whose records the host can read
  // Of one of the last kRing steps, which gave a sequence up to kStepTokens tokens.
  const StepRecord& record(int64_t step, int row, int token) const;
  std::span<const int32_t> top_tokens(int64_t step, int row, int token) const;
  std::span<const float> top_logprobs(int64_t step, int row, int token) const;

 private:
  int64_t place(int64_t step, int row, int token) const {
    return (step % kRing * max_batch_ + row) * kStepTokens + token;
  }

  int max_batch_;
  int top_capacity_;
  at::Tensor active_, step_, limit_, max_draft_, rules_, stop_count_, stops_, ticket_;
  at::Tensor draft_tokens_, draft_wanted_, accepted_;
  at::Tensor records_, top_tokens_, top_logprobs_, done_;  // pinned
};

}  // namespace dlf::cuda
