#pragma once

#include <cstdint>
#include <vector>

#include "model/adapter.h"
#include "model/spec.h"
#include "model/weights.h"

// Splits one model over several devices (tensor parallelism; Shoeybi et al., arXiv 1909.08053). Each device has some
// heads, some inner channels of every feed-forward and some of the vocabulary, and what it computes of an embedding or
// of a block's output is one term of a sum over the devices. A shard is a smaller model with a spec of its own, so that
// whatever runs a model runs a shard; its tensors are views of the whole model's.
namespace dlf {

inline constexpr int64_t kMostShards = 8;

// Which of how many shards.
struct Shard {
  int64_t rank = 0;
  int64_t count = 1;
};

// Neighbouring elements of a dimension.
struct Range {
  int64_t first;
  int64_t count;
};

// What a shard has of the whole model.
struct ShardRanges {
  Range heads, kv_heads;
  Range inner;  // outputs of gate and up
  Range vocab;
};

// Throws a ValueError, which names the number and the remedy, for a model that cannot be split so.
ShardRanges shard_ranges(const ModelSpec& spec, const Shard& shard);
ModelSpec shard_of(const ModelSpec& spec, const Shard& shard);
// Throws also where the boundary of two shards would lie within a group of quantized weights.
Weights shard_of(const Weights& weights, const Shard& shard);
Adapter shard_of(const Adapter& adapter, const ModelSpec& spec, const Shard& shard);

// Bytes of a shard's weights, if the whole model's take `bytes`: in proportion to the weights that it has.
int64_t shard_bytes(const ModelSpec& spec, const Shard& shard, int64_t bytes);

}  // namespace dlf
