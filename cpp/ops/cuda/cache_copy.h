#pragma once

#include <cstdint>

#include "support/cuda/stream.h"

namespace dlf::cuda {

struct CacheCopyArgs {
  void* keys;  // [layers, slots, kv_heads, capacity, head_bytes]
  void* values;
  void* piece;  // [layers, kv_heads, 2, count, head_bytes]: keys, then values
  int layers;
  int slots;
  int kv_heads;
  int64_t capacity;
  int head_bytes;  // head_dim elements
  int slot;
  int begin;  // position
  int count;  // of positions
};

// Copy the keys and values of `count` positions of one slot to `piece`, and back.
void save_cache(const CacheCopyArgs& args, Stream stream);
void restore_cache(const CacheCopyArgs& args, Stream stream);

}  // namespace dlf::cuda
