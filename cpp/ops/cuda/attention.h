#pragma once

#include "ops/attention.h"
#include "support/cuda/stream.h"

namespace dlf::cuda {

// Number of blocks that should share a context. It changes the speed only: the result is bit-identical.
int attention_splits(int rows, int kv_heads, int capacity, int multiprocessors, int compute_capability = 90);

// Attends from one query position of each row. The cache is [blocks, kv_heads, kCacheBlock, head_dim], head_dim even
// and at most 256. Up to four query heads of one key-value head read the cache together. `splits` is 1, or 8 blocks
// that share a context: a cluster, which needs compute capability 9.0.
void attention(const ops::AttentionArgs& args, int splits, Stream stream);

}  // namespace dlf::cuda
