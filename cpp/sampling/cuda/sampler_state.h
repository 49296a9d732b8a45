#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <span>
#include <vector>

#include "sampling/cuda/sampler.h"
#include "sampling/options.h"
#include "support/cuda/runtime.h"

namespace dlf::cuda {

// Bounds of a request's lists, so that the lists of all rows have one size.
inline constexpr int64_t kMaxLogitBiases = 4096;
inline constexpr int64_t kMaxBadWordTokens = 4096;
inline constexpr int64_t kMaxStopTokens = 256;

// The Sampler of a device: options, histories and counts of up to max_sequences sequences. The constructor takes all
// memory, which stays where it is, so that graphs may use it. One queue does all of its work.
class SamplerState {
 public:
  // max_rows bounds the tokens that are chosen at once, max_tokens a sequence's prompt and generated tokens together,
  // top_capacity a request's `logprobs`. blocks_per_row: how many blocks work on a row (1, 2, 4 or 8); 0 for
  // the device's default.
  struct Size {
    int max_sequences;
    int max_rows;
    int64_t vocab;
    int64_t max_tokens;
    int top_capacity;
    int blocks_per_row = 0;
  };
  SamplerState(int device, const Size& size);

  // Device memory of a state of this size.
  static int64_t bytes(int device, const Size& size);

  // Throws the errors that set() throws, without a device.
  static void check_request(const SamplingOptions& options, std::span<const int64_t> prompt, int64_t vocab,
                            int64_t max_tokens, int top_capacity);

  // Puts a sequence in a place, after what was queued before; it has `chosen` tokens already. Throws a ValueError for
  // what Sampler refuses and for what exceeds the bounds above. The host only waits if the last set() of that place is
  // not done yet.
  void set(int place, const SamplingOptions& options, std::span<const int64_t> prompt, Queue& queue,
           std::span<const int64_t> chosen = {});

  // Masks, in host memory, of sequences whose options say `masked`: [max_rows, masks_stride()]. For a choice of `count`
  // tokens of each sequence, sequence s has those from s * count on. Written while no sent ones are on their way.
  int32_t* masks() { return masks_.data_ptr<int32_t>(); }
  int64_t masks_stride() const { return args_.masks_stride; }
  // Sends masks to the device, before the choice that they are for.
  void send_masks(int64_t first, int64_t count, Queue& queue);

  // Logits of rows, some of which are skipped.
  struct Rows {
    const float* logits;
    int64_t stride;
    const int32_t* active;
    bool masked = false;  // whether the masks count
  };

  // The following work on the first `sequences` sequences and can be captured in a graph.
  //
  // Chooses a token for every active sequence, appends it and moves the sequence one step on.
  void sample(const Rows& rows, int sequences, Queue& queue);
  // Chooses tokens as if `ahead` drafted ones had been appended, and puts them behind the sequence's tokens.
  void draft(const Rows& rows, int sequences, int ahead, Queue& queue);
  // Records what sample() would choose next, after one drafted token, and so on: row j * sequences + s is sequence s,
  // j tokens ahead.
  void verify(const Rows& rows, int sequences, int count, Queue& queue);
  // Appends the first accepted[s] drafted tokens of every sequence s.
  void append_drafted(const int32_t* accepted, int sequences, Queue& queue);

  SampleArgs args(int sequences) const;
  const SampleRecord* records() const;  // [max_rows]
  const int32_t* top_tokens() const;    // [max_rows, top_capacity]
  const float* top_logprobs() const;    // [max_rows, top_capacity]

 private:
  void* staging(int place, Queue& queue);
  void choose(const Rows& rows, int sequences, int ahead, int count, Chosen chosen, Queue& queue);

  Size size_;
  SampleArgs args_ = {};
  at::Tensor memory_;    // on the device
  at::Tensor staging_;   // pinned [max_sequences]: options, lists and history, until the device has them
  at::Tensor masks_;     // pinned
  at::Tensor arrivals_;  // pinned [max_sequences]: the ticket of the last set() that is done
  std::vector<uint32_t> tickets_;
};

}  // namespace dlf::cuda
