#pragma once

#include <memory>
#include <span>

#include "model/adapter.h"
#include "model/cpu/kv_cache.h"
#include "model/expert_buffers.h"
#include "model/rope_table.h"
#include "model/weights.h"
#include "ops/cpu/linear_input.h"
#include "ops/cpu/lora.h"
#include "support/thread_team.h"

namespace dlf {

// One token of a pass, with its place in the KV cache.
struct Row {
  int64_t token;
  int64_t slot;
  int64_t position;
  int64_t adapter = -1;  // among those of its model; -1: none
};

// A decoder-only transformer (block.h) on one Weights, with the KV cache of all its lanes. Rows may have adapters: the
// base's products run once for all rows, and the adapters' updates cost little beside them.
class Decoder {
 public:
  static constexpr int64_t kPassTokens = 256;  // a pass reads at most this many tokens of a prompt

  // `rows`: most rows of one decode(); 0: as many as there are slots. `blocks`: of the KV cache, see there.
  Decoder(std::shared_ptr<const Weights> weights, int64_t slots, int64_t max_context, ThreadTeam& team,
          std::vector<std::shared_ptr<const Adapter>> adapters = {}, int64_t rows = 0, int64_t blocks = 0);

  // Reads one token of each of several lanes, or a few that follow each other, and writes logits [rows, vocab]. A row's
  // result does not depend on the others, nor on whether the tokens before came in passes of their own. Rows of one
  // adapter should be neighbours. Allocates nothing.
  void decode(std::span<const Row> rows, float* logits);

  // Reads tokens of one lane from `position` on; writes the logits of the last one, or of every one ([tokens, vocab]),
  // or none if logits is null. A row's result does not depend on how the tokens are divided into calls.
  void prefill(std::span<const int64_t> tokens, int64_t slot, int64_t position, float* logits, bool all_logits = false,
               int64_t adapter = -1);

  const Weights& weights() const { return *weights_; }
  KVCache& cache() { return cache_; }

 private:
  class Pass;

  // Neighbouring rows with one adapter.
  struct Run {
    const Adapter* adapter;
    int row;
    int rows;
  };

  std::shared_ptr<const Weights> weights_;
  KVCache cache_;
  int64_t decode_rows_;
  ThreadTeam& team_;
  std::vector<RopeTable> ropes_;
  at::Tensor hidden_, normed_, q_, k_, v_, attended_, gate_, up_;  // [rows, ...] of one forward pass
  ExpertBuffers experts_;
  at::Tensor expert_up_;  // [pairs, size]
  at::Tensor branch_;     // [rows, hidden], where a block's output is not added as it is
  ops::LinearInput input_;
  std::vector<int32_t> tokens_, positions_, slots_;  // of the pass's rows

  std::vector<std::shared_ptr<const Adapter>> adapters_;
  std::vector<Run> runs_;  // of the pass
  std::vector<ops::LoraRun> updates_, down_updates_;
  at::Tensor inner_;  // [updates, rank]
};

}  // namespace dlf
