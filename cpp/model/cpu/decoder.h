#pragma once

#include <memory>
#include <span>

#include "model/adapter.h"
#include "model/cpu/kv_cache.h"
#include "model/rope_tables.h"
#include "model/weights.h"
#include "ops/cpu/row.h"
#include "ops/linear.h"
#include "ops/lora.h"
#include "support/thread_team.h"

namespace dlf {

using ops::Row;

// A pre-norm decoder-only transformer (Llama, Mistral, Qwen2, Qwen3: they differ only in config) on one Weights, with
// the KV cache of all its lanes. Rows may have adapters: the base's products are one for all rows, and what an adapter
// adds to its own costs little beside them.
class Decoder {
 public:
  static constexpr int64_t kChunkTokens = 256;  // a prompt is read in chunks of at most this many

  // `rows` are the most that one decode() takes; 0: as many as there are slots.
  Decoder(std::shared_ptr<const Weights> weights, int64_t slots, int64_t max_context, ThreadTeam& team,
          std::vector<std::shared_ptr<const Adapter>> adapters = {}, int64_t rows = 0);

  // One token of each of several lanes, or a few that follow each other: logits [rows, vocab]. What a row gives does
  // not depend on the others, nor on whether those before it came in passes of their own. Rows of one adapter had
  // better be neighbours. Allocates nothing.
  void decode(std::span<const Row> rows, float* logits);

  // All tokens of one lane from a position on; writes the logits of the last one, or of every one ([tokens, vocab]), or
  // none where logits is null.
  void prefill(std::span<const int64_t> tokens, int64_t slot, int64_t position, float* logits, bool all_logits = false,
               int64_t adapter = -1);

  const Weights& weights() const { return *weights_; }
  KVCache& cache() { return cache_; }

 private:
  enum class Phase { prefill, decode };

  // Neighbouring rows with one adapter.
  struct Run {
    const Adapter* adapter;
    int64_t row;
    int64_t rows;
  };
  // A product that adapters may add to.
  struct Adapted {
    LowRank LayerAdapter::* update;
    float* y;
  };

  void forward(std::span<const Row> rows, Phase phase);
  void find_runs(std::span<const Row> rows);
  void attention_block(const LayerWeights& layer, int64_t index, std::span<const Row> rows, Phase phase);
  void mlp_block(const LayerWeights& layer, int64_t index, int64_t rows, Phase phase);
  void adapt(int64_t layer, const float* x, int64_t rows, std::initializer_list<Adapted> products);
  void project(const LinearWeights& linear, const float* x, float* y, int64_t rows, Phase phase,
               bool accumulate = false);
  void multiply(const ops::LinearInputRows& x, std::span<const ops::LinearArgs> products, Phase phase);
  ops::LinearInputRows input_of(const LinearWeights& linear, const float* x, int64_t rows);
  void head(const float* hidden, int64_t rows, float* logits, Phase phase);

  std::shared_ptr<const Weights> weights_;
  KVCache cache_;
  int64_t decode_rows_;
  ThreadTeam& team_;
  RopeTables rope_;
  at::Tensor hidden_, normed_, q_, k_, v_, attended_, gate_, up_;  // [rows, ...] of one forward pass
  ops::LinearInput input_;
  std::vector<Row> prefill_rows_;

  std::vector<std::shared_ptr<const Adapter>> adapters_;
  std::vector<Run> runs_;  // of the forward pass
  std::vector<ops::LoraUpdate> updates_;
  at::Tensor inner_;  // [rows, products, rank]
};

}  // namespace dlf
