#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <span>

#include "engine/sequences_cuda.h"
#include "sampling/sampler_state_cuda.h"
#include "support/cuda/runtime.h"

namespace dlf::cuda {

// The memory of a SequenceTable and its Ring: on the large model's device what steps read and write, on the host what
// they gave.
class SequenceMemory {
 public:
  SequenceMemory(int max_batch, int top_capacity, Queue& queue);

  SequenceTable table(std::span<const ModelRows> models);

  // Queues the end of a step, advance(), for the first `rows` sequences.
  void advance(const SequenceTable& table, const SamplerState& sampler, const FusionRecord* fusions, int experts,
               int rows, Stream stream);
  const uint32_t* chosen() const { return reinterpret_cast<const uint32_t*>(chosen_.const_data_ptr<int32_t>()); }
  const int32_t* active() const { return active_.const_data_ptr<int32_t>(); }

  int64_t steps_done() const;  // steps whose records the host can read
  // Of one of the last kRing steps.
  const StepRecord& record(int64_t step, int row) const;
  std::span<const int32_t> top_tokens(int64_t step, int row) const;
  std::span<const float> top_logprobs(int64_t step, int row) const;

 private:
  int64_t place(int64_t step, int row) const { return step % kRing * max_batch_ + row; }

  int max_batch_;
  int top_capacity_;
  at::Tensor active_, step_, limit_, chosen_, stop_count_, stops_, ticket_;
  at::Tensor records_, top_tokens_, top_logprobs_, done_;  // pinned
};

}  // namespace dlf::cuda
