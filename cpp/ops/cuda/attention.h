#pragma once

#include "ops/attention.h"
#include "support/cuda/stream.h"

namespace dlf::cuda {

// How many blocks should share a context. It changes the speed only: the answer is the same to the bit.
int attention_splits(int rows, int kv_heads, int capacity, int multiprocessors, int compute_capability = 90);

// One query position of each row; the cache is [slots, kv_heads, capacity, head_dim], head_dim even and at most 256. Up
// to four query heads of one key-value head read the cache together. `splits` is 1, or 8 blocks that share a context: a
// cluster, which needs compute capability 9.0.
void attention(const ops::AttentionArgs& args, int splits, Stream stream);

}  // namespace dlf::cuda
