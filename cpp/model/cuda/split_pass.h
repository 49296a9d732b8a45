#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <vector>

#include "model/cuda/collectives.h"
#include "model/cuda/pass.h"

namespace dlf::cuda {

// One pass of all shards of a split model: each does a step of block.h before any does the next, and what they compute
// of an embedding or of a block's output is added up.
class SplitPass {
 public:
  SplitPass(std::vector<DecoderShard::Pass> shards, Collectives& collectives)
      : shards_(std::move(shards)), collectives_(collectives) {}

  // tokens[rank] has those of the shard, −1 for those of other shards.
  void embed(const std::vector<const int32_t*>& tokens, int lanes);
  // Computes the logits of `rows` rows from `first` on, by the first rank's device, into `logits`. Rows of the pass
  // with a position of −1 keep theirs. Ends the pass.
  void head(int first, int rows, at::Tensor& logits, const int32_t* positions);

  const ModelSpec& spec() { return shards_[0].spec(); }
  void norm_for_attention(int64_t layer) { each(&Pass::norm_for_attention, layer); }
  void norm_for_feed_forward(int64_t layer) { each(&Pass::norm_for_feed_forward, layer); }
  void project_heads(int64_t layer) { each(&Pass::project_heads, layer); }
  void rope_and_cache(int64_t layer) { each(&Pass::rope_and_cache, layer); }
  void attend(int64_t layer) { each(&Pass::attend, layer); }
  void add_attention(int64_t layer) { add(&Pass::project_attention, &Pass::end_attention, layer); }
  void gate(int64_t layer) { each(&Pass::gate, layer); }
  void add_feed_forward(int64_t layer) { add(&Pass::project_feed_forward, &Pass::end_feed_forward, layer); }
  void route(int64_t layer) { each(&Pass::route, layer); }
  void add_experts(int64_t layer) { each(&Pass::add_experts, layer); }

 private:
  using Pass = DecoderShard::Pass;

  // Runs step(pass, rank) of every shard, with its device current.
  template <typename Step>
  void run(Step&& step);
  void each(void (Pass::*step)(int64_t), int64_t layer);
  void add(void (Pass::*project)(int64_t, at::Tensor&), void (Pass::*end)(int64_t), int64_t layer);
  void sum(at::Tensor& (Pass::*y)());
  // A term of a sum, as the rows that its shard writes.
  at::Tensor term(size_t rank);

  std::vector<Pass> shards_;
  Collectives& collectives_;
};

}  // namespace dlf::cuda
