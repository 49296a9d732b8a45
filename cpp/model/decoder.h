#pragma once

#include <memory>
#include <span>

#include "model/kv_cache.h"
#include "model/rope_tables.h"
#include "model/weights.h"
#include "ops/linear.h"
#include "ops/row.h"
#include "support/thread_team.h"

namespace dlf {

using ops::Row;

// A pre-norm decoder-only transformer (Llama, Mistral, Qwen2, Qwen3: they differ only in config) on one Weights, with
// the KV cache of all its lanes.
class Decoder {
 public:
  static constexpr int64_t kPrefillRows = 256;  // a longer prompt goes through in pieces of this many tokens

  Decoder(std::shared_ptr<const Weights> weights, int64_t slots, int64_t max_context, ThreadTeam& team);

  // One token of each of several lanes: logits [rows, vocab]. Allocates nothing.
  void decode(std::span<const Row> rows, float* logits);

  // All tokens of one lane from a position on; writes the logits of the last one, or of every one ([tokens, vocab]), or
  // none where logits is null.
  void prefill(std::span<const int64_t> tokens, int64_t slot, int64_t position, float* logits, bool all_logits = false);

  const Weights& weights() const { return *weights_; }
  KVCache& cache() { return cache_; }

 private:
  enum class Phase { prefill, decode };

  void forward(std::span<const Row> rows, Phase phase);
  void attention_block(const LayerWeights& layer, int64_t index, std::span<const Row> rows, Phase phase);
  void mlp_block(const LayerWeights& layer, int64_t rows, Phase phase);
  void project(const LinearWeights& linear, const float* x, float* y, int64_t rows, Phase phase,
               bool accumulate = false);
  void multiply(const ops::LinearInputRows& x, std::span<const ops::LinearArgs> products, Phase phase);
  ops::LinearInputRows input_of(const LinearWeights& linear, const float* x, int64_t rows);
  void head(const float* hidden, int64_t rows, float* logits, Phase phase);

  std::shared_ptr<const Weights> weights_;
  KVCache cache_;
  ThreadTeam& team_;
  RopeTables rope_;
  at::Tensor hidden_, normed_, q_, k_, v_, attended_, gate_, up_;  // [rows, ...] of one forward pass
  ops::LinearInput input_;
  std::vector<Row> prefill_rows_;
};

}  // namespace dlf
