#pragma once

#include <cstdint>

#include "support/cuda/stream.h"
#include "support/dtype.h"

namespace dlf::cuda {

struct AttentionArgs {
  const void* qkv;  // [rows, stride], of dtype: q [heads, head_dim] at 0
  int stride;
  const void* k_cache;  // [slots, kv_heads, capacity, head_dim], of dtype
  const void* v_cache;
  void* y;                  // [rows, heads, head_dim], of dtype
  const int32_t* position;  // [rows]: row r sees positions 0 .. position[r] of slot r % slots; -1: y = 0
  int slots;
  int rows;
  int heads;
  int kv_heads;
  int head_dim;  // even, at most 256
  int capacity;  // positions of a slot
  int window;    // only the last `window` positions, itself included; 0: all
  float scale;
  int splits;  // 1, or 8 blocks that share a context: a cluster, which needs compute capability 9.0
  DType dtype;
};

// How many blocks should share a context. It changes the speed only: the answer is the same to the bit.
int attention_splits(int rows, int kv_heads, int capacity, int multiprocessors, int compute_capability = 90);

// Grouped-query attention of one query position of each row over the cache, with a running softmax (Milakov and
// Gimelshein, arXiv 1805.02867). Up to four query heads of one key-value head read the cache together.
void attention(const AttentionArgs& args, Stream stream);

}  // namespace dlf::cuda
