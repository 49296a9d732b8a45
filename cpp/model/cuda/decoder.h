#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <functional>
#include <memory>
#include <vector>

#include "model/block_store.h"
#include "model/cuda/collectives.h"
#include "model/cuda/decoder_shard.h"
#include "model/shard.h"

namespace dlf::cuda {

// A model on one GPU, or split over several (model/shard.h), each of which has a shard of its weights and of its KV
// cache. Everything outside of it sees the first one alone: tokens, positions and logits are there, and its queue has
// all work before and after a pass.
class Decoder final : public BlockStore {
 public:
  // `home` is the queue of the first device; `others`: the further ones.
  Decoder(const Weights& weights, const DecoderShape& shape, Queue& home, const std::vector<int>& others = {},
          const std::vector<std::shared_ptr<const Adapter>>& adapters = {},
          const std::vector<int64_t>& lane_adapter = {});

  // Memory that it will take on one of its devices. Allocates nothing.
  static DecoderBytes bytes(const ModelSize& model, const DecoderShape& shape, const Shard& shard);

  // Reads `count` tokens, from the `first` one on, of the first `batch` sequences in each of their lanes: from tokens()
  // and positions() to logits(). The rows of one token of all sequences come before those of the next token, in
  // tokens() as in logits(). `first_logits`: only those of the first token get logits.
  void decode(int batch, int first = 0, int count = 1, bool first_logits = false);

  // Reads `count` tokens (in device memory) of one row, from position `start` on; if `last`, computes the last one's
  // logits.
  void prefill(const int32_t* tokens, int count, int row, int start, bool last);

  // The same, bit-identical to decode(), which reads them one by one.
  void read_again(const int32_t* tokens, int count, int row, int start, bool last);

  // The same, with the logits of all tokens: float32 [>= count, vocab].
  void prefill(const int32_t* tokens, int count, int row, int start, at::Tensor& logits);

  int64_t block_count() const override { return shards_[0]->block_count(); }
  void set_block(int64_t slot, int64_t index, int32_t block) override;
  void copy_block(int32_t from, int32_t to) override;
  // Queues the changes of blocks since the last call. Prompts do so themselves.
  bool blocks_changed() const { return shards_[0]->blocks_changed(); }
  void change_blocks();

  Queue& queue() { return home_; }
  int lanes() const { return shape_.lanes; }
  float* logits() { return logits_.mutable_data_ptr<float>(); }
  at::Tensor logits_of(int row) const { return logits_.narrow(0, row, 1); }
  int64_t logits_rows() const { return logits_.size(0); }
  int64_t vocab() const { return logits_.size(1); }            // the stride of logits()
  at::Tensor& tokens() { return shards_[0]->tokens(); }        // int32 [max_tokens]
  at::Tensor& positions() { return shards_[0]->positions(); }  // int32 [rows]; −1: the row is idle

 private:
  // Tokens of a pass, and the rows that get logits.
  struct Rows {
    const int32_t* tokens;  // [token_count]
    int token_count;
    int lanes;                       // rows of a token
    int first, count;                // rows with logits
    int at = 0, position_count = 0;  // those of positions() that are the pass's
  };
  using MakePass = std::function<DecoderShard::Pass(DecoderShard&)>;

  bool split() const { return collectives_ != nullptr; }
  void read(const MakePass& pass, const Rows& rows, at::Tensor logits);
  std::vector<const int32_t*> feed(const Rows& rows);

  DecoderShape shape_;
  Queue& home_;
  std::vector<std::unique_ptr<Queue>> others_;
  std::vector<std::unique_ptr<DecoderShard>> shards_;
  std::vector<Range> vocab_;  // of each shard
  at::Tensor logits_;         // float32 [rows with logits, vocab]
  // Only of a split model.
  std::unique_ptr<Collectives> collectives_;
  std::vector<at::Tensor> fed_;  // int32, tokens of each shard
};

}  // namespace dlf::cuda
