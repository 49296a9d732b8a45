#pragma once

#include "ops/attention.h"
#include "ops/cpu/cache_layout.h"
#include "support/cpu_capability.h"
#include "support/thread_team.h"

namespace dlf::ops {

// Needs the cache as cpu/cache_layout.h lays it out. Takes no scratch memory. Up to kAttentionHeads query heads of one
// key-value head read the cache together.
void attention(const AttentionArgs& args, ThreadTeam& team);

// Does the same for many rows at consecutive positions of one slot, and reads the cache once per chunk of them. Takes
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
