#pragma once

#include <cstdint>

#include "ops/block_table.h"

namespace dlf::ops {

// Layout of one layer's keys and values in the KV cache:
//   keys    [blocks, kv_heads, head_dim, kCacheBlock]
//   values  [blocks, kv_heads, kCacheBlock, head_dim]
// A query's scores are sums over head_dim, so the keys of a block's positions lie side by side: a vector register holds
// the scores of neighbouring positions, and needs no sum across its lanes.

// Offset of a block's head in the keys and in the values, in elements.
constexpr int64_t cache_offset(int64_t block, int64_t head, int64_t kv_heads, int64_t head_dim) {
  return (block * kv_heads + head) * kCacheBlock * head_dim;
}

// Offset of element i of the key at a position, from cache_offset().
constexpr int64_t key_offset(int64_t position, int64_t i) { return i * kCacheBlock + position % kCacheBlock; }

// Offset of the value at a position, likewise.
constexpr int64_t value_offset(int64_t position, int64_t head_dim) { return position % kCacheBlock * head_dim; }

}  // namespace dlf::ops
