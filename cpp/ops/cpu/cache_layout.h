#pragma once

#include <cstdint>

namespace dlf::ops {

// Layout of one layer's keys and values in the KV cache:
//   keys    [slots, kv_heads, capacity / kCacheBlock, head_dim, kCacheBlock]
//   values  [slots, kv_heads, capacity, head_dim]
// A query's scores are sums over head_dim, so the keys of a block's positions lie side by side: a vector register holds
// the scores of neighbouring positions, and needs no sum across its lanes.
inline constexpr int64_t kCacheBlock = 64;

// Offset of a slot's head in the keys and in the values, in elements.
constexpr int64_t cache_offset(int64_t slot, int64_t head, int64_t kv_heads, int64_t capacity, int64_t head_dim) {
  return (slot * kv_heads + head) * capacity * head_dim;
}

// Offset of element i of the key at a position, from cache_offset().
constexpr int64_t key_offset(int64_t position, int64_t i, int64_t head_dim) {
  return position / kCacheBlock * kCacheBlock * head_dim + i * kCacheBlock + position % kCacheBlock;
}

}  // namespace dlf::ops
