#pragma once

#include <cstdint>

#include "ops/block_table.h"
#include "support/cuda/stream.h"

namespace dlf::cuda {

// Copies the keys, or values, of a slot's first positions from their blocks to one stretch for each head, as attention
// libraries take them.
struct CacheGatherArgs {
  const void* cache;  // one layer's [blocks, kv_heads, kCacheBlock, head_bytes]
  void* y;            // [kv_heads, stride, head_bytes]
  ops::BlockTable table;
  int kv_heads;
  int head_bytes;  // head_dim elements
  int slot;
  int count;       // of positions
  int64_t stride;  // positions of a head in y
};
void gather_cache(const CacheGatherArgs& args, Stream stream);

}  // namespace dlf::cuda
