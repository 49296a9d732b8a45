#pragma once

#include "ops/cache_layout.h"
#include "ops/cpu/row.h"
#include "support/cpu_capability.h"
#include "support/dtype.h"
#include "support/thread_team.h"

namespace dlf::ops {

struct AttentionArgs {
  const float* q;       // [rows, heads, head_dim]
  const void* k_cache;  // see cache_layout.h, of dtype
  const void* v_cache;
  float* y;        // [rows, heads, head_dim]
  const Row* row;  // [rows]; a row sees positions 0 .. row.position of its slot
  int64_t rows;
  int64_t heads;
  int64_t kv_heads;
  int64_t head_dim;
  int64_t capacity;  // positions of a slot: a multiple of kCacheBlock
  int64_t window;    // only the last `window` positions, itself included; 0: all
  float scale;
  DType dtype;
};

// Causal grouped-query attention over the cache, with a running softmax (Milakov and Gimelshein, arXiv 1805.02867), so
// that it needs no scratch memory. Up to kAttentionHeads query heads of one key-value head read the cache together.
void attention(const AttentionArgs& args, ThreadTeam& team);

// The same for many rows at consecutive positions of one slot: the cache is read once for a chunk of them. Takes
// scratch memory.
void prefill_attention(const AttentionArgs& args, ThreadTeam& team);

inline constexpr int64_t kAttentionHeads = 4;
inline constexpr int64_t kPrefillChunk = 32;  // rows

// Groups of query heads that read one key-value head together.
inline int64_t head_groups(const AttentionArgs& args) {
  return (args.heads / args.kv_heads + kAttentionHeads - 1) / kAttentionHeads;
}

// The running softmax of one query.
struct RunningSoftmax {
  float maximum;
  float total;
};

struct PrefillScratch {
  float* keys;              // [head_dim, kCacheBlock]
  float* values;            // [kCacheBlock, head_dim]
  float* sums;              // [kPrefillChunk * heads / kv_heads, head_dim]
  RunningSoftmax* queries;  // [kPrefillChunk * heads / kv_heads]
};

// Work items [begin, end) of rows x kv_heads x head_groups().
DLF_CPU_KERNEL(attention_kernel, const AttentionArgs& args, int64_t begin, int64_t end);
// Work items [begin, end) of kv_heads x chunks.
DLF_CPU_KERNEL(prefill_attention_kernel, const AttentionArgs& args, const PrefillScratch& scratch, int64_t begin,
               int64_t end);

}  // namespace dlf::ops
