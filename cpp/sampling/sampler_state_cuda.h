#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <span>
#include <vector>

#include "sampling/options.h"
#include "sampling/sampler_cuda.h"
#include "support/cuda/runtime.h"

namespace dlf::cuda {

// What a request may list, so that every row's lists have one size.
inline constexpr int64_t kMaxLogitBiases = 4096;
inline constexpr int64_t kMaxBadWordTokens = 4096;
inline constexpr int64_t kMaxStopTokens = 256;

// Sampler's twin on a device: the options, histories and counts of up to max_rows sequences. All memory is taken by the
// constructor and stays where it is, so that graphs may hold on to it. One queue does all of its work.
class SamplerState {
 public:
  // max_tokens bounds a sequence's prompt and generated tokens together, top_capacity what a request may ask for as
  // `logprobs`. blocks_per_row: how many blocks work on a row (1, 2, 4 or 8); 0: what suits the device.
  SamplerState(int device, int max_rows, int64_t vocab, int64_t max_tokens, int top_capacity, int blocks_per_row = 0);

  // Device memory that it takes.
  static int64_t bytes(int device, int max_rows, int64_t vocab, int64_t max_tokens, int top_capacity,
                       int blocks_per_row = 0);

  // Throws the errors that set() throws, without a device.
  static void check_request(const SamplingOptions& options, std::span<const int64_t> prompt, int64_t vocab,
                            int64_t max_tokens, int top_capacity);

  // Puts a sequence in a row, after what was queued before. Throws a ValueError for what Sampler refuses and for what
  // exceeds the bounds above. The host only waits if the row's last set() is not done yet.
  void set(int row, const SamplingOptions& options, std::span<const int64_t> prompt, Queue& queue);

  // Chooses a token for each of the first `rows` rows that is active, from logits[r * stride], appends it and takes the
  // row a step further. Can be captured.
  void sample(const float* logits, int64_t stride, const int32_t* active, int rows, Queue& queue);

  const SampleRecord* records() const;  // [max_rows]
  const int32_t* top_tokens() const;    // [max_rows, top_capacity]
  const float* top_logprobs() const;    // [max_rows, top_capacity]

 private:
  void* staging(int row, Queue& queue);

  int max_rows_;
  int64_t vocab_;
  int64_t max_tokens_;
  int top_capacity_;
  SampleArgs args_ = {};
  at::Tensor memory_;    // on the device
  at::Tensor staging_;   // pinned [max_rows]: a row, its lists and history, on their way to the device
  at::Tensor arrivals_;  // pinned [max_rows]: the ticket of the last set() that is done
  std::vector<uint32_t> tickets_;
};

}  // namespace dlf::cuda
