#pragma once

#include <ATen/core/Tensor.h>

#include <algorithm>
#include <cstdint>
#include <memory>
#include <vector>

#include "model/cuda/adapters.h"
#include "model/cuda/weights.h"
#include "model/expert_buffers.h"
#include "model/model_size.h"
#include "model/rope_table.h"
#include "model/spec.h"
#include "ops/block_table.h"
#include "support/cuda/runtime.h"

namespace dlf::cuda {

inline constexpr int kChunkTokens = 512;  // a prompt is read in chunks of at most this many

// Sizes that decide a decoder's device memory beside the weights.
struct DecoderShape {
  int max_batch;  // sequences
  int lanes;      // of each sequence; lane l of sequence s has cache slot s * lanes + l
  int64_t max_context;
  int max_tokens;      // of all sequences in one pass: more than max_batch if a sequence may have several
  int64_t blocks = 0;  // of the KV cache; 0: as many as all slots need, each of which has its own then

  int64_t of_slot() const { return ops::blocks_for(max_context); }
  int64_t most_blocks() const { return blocks > 0 ? blocks : slots() * of_slot(); }
  int slots() const { return max_batch * lanes; }
  int rows() const { return max_tokens * lanes; }
  int most_rows() const { return std::max(kChunkTokens, rows()); }  // of one pass
  // Most rows that have logits, the spare sequence's included.
  int64_t rows_with_logits() const { return std::max(rows(), slots() + lanes); }
};

// Bytes of device memory that a decoder takes, by part.
struct DecoderBytes {
  int64_t weights;
  int64_t kv_cache;
  int64_t activations;
  int64_t logits;
  int64_t workspace;  // for the libraries, with a bound for graphs and for rounding to whole pages
};

// The transformer of block.h on a GPU, or a shard of it (model/shard.h), with the KV cache of all its lanes. A decode
// step can be captured into a graph: all its memory lies at fixed addresses, and the tokens that it reads are in device
// memory. The residual stream is float32, activations have the weights' dtype. One sequence beyond max_batch, which
// does not decode, has slots too: they come after the others.
class DecoderShard {
 public:
  class Pass;

  // `lane_adapter` has the index of each lane's adapter, or −1; it is empty if no lane has one.
  DecoderShard(const Weights& weights, const DecoderShape& shape, Queue& queue,
               const std::vector<std::shared_ptr<const Adapter>>& adapters = {},
               const std::vector<int64_t>& lane_adapter = {});

  // Memory that a decoder will take. Allocates nothing.
  static DecoderBytes bytes(const ModelSize& model, const DecoderShape& shape);

  // Readies the libraries for prompts, whose blocks' outputs go to tensors like `output`, which it overwrites.
  void ready_libraries(at::Tensor& output);

  int64_t block_count() const { return keys_.size(1); }
  void set_block(int64_t slot, int64_t index, int32_t block);
  void copy_block(int32_t from, int32_t to) { copies_.push_back({from, to}); }
  // Queues the changes of blocks since the last call.
  bool blocks_changed() const { return !copies_.empty() || !entries_.empty(); }
  void change_blocks();

  Queue& queue() { return queue_; }
  const ModelSpec& spec() const { return spec_; }
  at::Tensor& branch() { return branch_; }        // [most rows, hidden]: the output of a block
  at::Tensor& logits() { return logits_; }        // float32 [rows with logits, vocab]
  at::Tensor& tokens() { return tokens_; }        // int32 [max_tokens]
  at::Tensor& positions() { return positions_; }  // int32 [rows]; −1: the row is idle

 private:
  // A change of the block table, or a copy of a block.
  struct Entry {
    int64_t at;
    int32_t block;
  };
  struct Copy {
    int32_t from, to;
  };

  ModelSpec spec_;
  DType dtype_;
  DecoderShape shape_;
  Queue& queue_;
  std::shared_ptr<const DeviceWeights> weights_;
  DeviceAdapters adapters_;
  int64_t k_offset_, v_offset_, up_offset_;
  DeviceInfo device_;
  at::Tensor keys_,
      values_;        // [layers, blocks, kv_heads, kCacheBlock, head_dim]
  at::Tensor table_;  // int32 [slots, blocks of a context]
  std::vector<Entry> entries_;
  std::vector<Copy> copies_;
  at::Tensor prompt_keys_, prompt_values_;  // [kv_heads, max_context, head_dim] of the layer that a prompt is in
  std::vector<RopeTable> ropes_;
  at::Tensor tokens_, positions_;
  at::Tensor hidden_;  // float32 [most rows, hidden]
  at::Tensor normed_, qkv_, attended_, branch_, gate_up_, activated_;
  ExpertBuffers experts_;
  at::Tensor expert_inner_;  // float32 [pairs, 2, rank], if adapters change experts
  at::Tensor dequantized_;   // the largest matrix, if weights are quantized
  at::Tensor logits_;        // float32 [rows, with those of the spare sequence; vocab]
};

}  // namespace dlf::cuda
