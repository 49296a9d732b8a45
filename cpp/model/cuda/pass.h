#pragma once

#include "model/block.h"
#include "model/cuda/decoder_shard.h"
#include "ops/cuda/adapted_lanes.h"
#include "ops/cuda/embedding.h"
#include "ops/cuda/linear.h"
#include "ops/cuda/lora.h"

namespace dlf::cuda {

// Rows that the libraries see for a chunk of `rows` tokens. They choose a kernel by this number and load it at its
// first use, so only a few numbers occur, and DecoderShard::ready_libraries() has used all of them.
constexpr int padded_rows(int rows) {
  constexpr int kFine = 16;
  constexpr int kCoarse = 64;  // rows that a library's kernel takes at once
  return static_cast<int>(ops::round_up(rows, rows <= kCoarse ? kFine : kCoarse));
}

// Launches the steps of block.h for the rows of one pass. The output of a block is a branch, which the next norm adds
// to the stream, unless it has a norm of its own or another branch comes first.
class DecoderShard::Pass {
 public:
  // `rows` rows from `first` on, one for each lane and token; row r has the slot r % slots.
  static Pass decode(DecoderShard& decoder, int first, int rows, int slots);
  // `count` tokens of one row's prompt from position `start` on; or of tokens that it decoded before.
  static Pass prompt(DecoderShard& decoder, int row, int start, int count);
  static Pass again(DecoderShard& decoder, int row, int start, int count);

  void embed(const int32_t* tokens, int lanes);       // stream = the embedding of tokens[row / lanes]
  void head(int first, int rows, at::Tensor logits);  // logits of `rows` rows from `first` on; ends the pass
  // A product of each shape, of whatever the buffers hold; those of blocks' outputs go to `output`.
  void multiply_once(int rows, at::Tensor& output);
  void attend_once();  // attention, likewise

  const ModelSpec& spec() const { return d_.spec_; }
  const DeviceLayer& layer(int64_t index) const { return d_.weights_->layers[index]; }
  void norm_for_attention(int64_t index) { norm(layer(index).attention_norm, 0); }
  void norm_for_feed_forward(int64_t index) { norm(layer(index).feed_forward_norm, 0); }
  void project_heads(int64_t index);
  void rope_and_cache(int64_t index);
  void attend(int64_t index);
  void add_attention(int64_t index);
  void gate(int64_t index);
  void add_feed_forward(int64_t index);
  void route(int64_t index);
  void add_experts(int64_t index);

  // The halves of embed(), add_attention(), add_feed_forward() and head(), between which a split model adds up what its
  // shards have computed. `y` is float32 or of the weights' type.
  void embed(const int32_t* tokens, int lanes, at::Tensor& y);
  void project_attention(int64_t index, at::Tensor& y);
  void end_attention(int64_t index) { end_branch(layer(index).attention_post_norm); }
  void project_feed_forward(int64_t index, at::Tensor& y);
  void end_feed_forward(int64_t index) { end_branch(layer(index).feed_forward_post_norm); }
  void norm_for_head(int first, int rows);
  void project_logits(int first, int rows, at::Tensor logits);

  DecoderShard& shard() { return d_; }
  int rows() const { return rows_; }
  at::Tensor& hidden() { return d_.hidden_; }
  at::Tensor& branch() { return d_.branch_; }

 private:
  Pass(DecoderShard& decoder, const ops::Places& places, int only_row, bool is_prompt)
      : d_(decoder), places_(places), rows_(places.rows), only_row_(only_row), is_prompt_(is_prompt) {}

  bool reads_one() const { return only_row_ >= 0; }

  AttentionBuffers buffers(int64_t index);
  void norm(const NormWeights& weights, int first);
  void attend_prompt(const ops::AttentionArgs& args);
  void begin_branch();
  void end_branch(const NormWeights& post_norm);
  void add_branch(const NormWeights& norm);
  LinearArgs linear_args(const DeviceLinear& linear, const at::Tensor& x, at::Tensor& y) const;
  at::Tensor library_weight(const DeviceLinear& linear) const;
  void multiply(const std::vector<DeviceLinear>& linears, const at::Tensor& x, at::Tensor& y);
  void multiply(const DeviceLinear& linear, const at::Tensor& x, at::Tensor& y);
  AdaptedLanes adapted_lanes() const { return {d_.shape_.lanes, reads_one() ? only_row_ % d_.shape_.lanes : -1}; }
  bool adapts() const { return !reads_one() || d_.adapters_.adapts(adapted_lanes().lane); }
  LoraArgs lora_args(const ops::LoraUpdate* updates, at::Tensor& y) const;
  void adapt(int64_t index, DeviceAdapters::Input input, at::Tensor& y);
  void adapt_embedding(const EmbeddingArgs& args, at::Tensor& y);
  void adapt_head(const at::Tensor& x, at::Tensor& logits);

  DecoderShard& d_;
  ops::Places places_;
  int rows_;
  int only_row_;  // −1: the pass reads tokens of all
  bool is_prompt_;
  bool branched_ = false;  // whether a branch is still to be added
};

}  // namespace dlf::cuda
