#pragma once

#include <cstdint>

#include "ops/block_table.h"
#include "support/cuda/stream.h"

namespace dlf::cuda {

inline constexpr int kBlockChanges = 32;  // of one launch

// Changes entries of a block table in device memory.
struct TableChanges {
  int32_t* table;
  int count;
  int64_t entry[kBlockChanges];
  int32_t block[kBlockChanges];
};
void set_blocks(const TableChanges& args, Stream stream);

// Copies blocks, one after the other: a block that one copy writes may be read by the next.
struct BlockCopies {
  void* keys;  // [layers, blocks, block_bytes]
  void* values;
  int layers;
  int64_t blocks;
  int64_t block_bytes;  // a multiple of 16
  int count;
  int32_t from[kBlockChanges];
  int32_t to[kBlockChanges];
};
void copy_blocks(const BlockCopies& args, Stream stream);

// Copies the keys, or values, of a slot's first positions from their blocks to one stretch for each head, as attention
// libraries take them.
struct GatherArgs {
  const void* cache;  // one layer's [blocks, kv_heads, kCacheBlock, head_bytes]
  void* y;            // [kv_heads, stride, head_bytes]
  ops::BlockTable table;
  int kv_heads;
  int head_bytes;  // head_dim elements
  int slot;
  int count;       // of positions
  int64_t stride;  // positions of a head in y
};
void gather_cache(const GatherArgs& args, Stream stream);

}  // namespace dlf::cuda
