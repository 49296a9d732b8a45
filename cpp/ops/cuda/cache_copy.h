#pragma once

#include <cstdint>

#include "ops/block_table.h"
#include "support/cuda/stream.h"

namespace dlf::cuda {

struct CacheCopyArgs {
  void* keys;  // [layers, blocks, kv_heads, kCacheBlock, head_bytes]
  void* values;
  void* piece;  // [layers, kv_heads, 2, count, head_bytes]: keys, then values
  ops::BlockTable table;
  int layers;
  int64_t blocks;
  int kv_heads;
  int head_bytes;  // head_dim elements
  int slot;
  int begin;  // position
  int count;  // of positions
};

// Copy the keys and values of `count` positions of one slot to `piece`, and back.
void save_cache(const CacheCopyArgs& args, Stream stream);
void restore_cache(const CacheCopyArgs& args, Stream stream);

}  // namespace dlf::cuda
