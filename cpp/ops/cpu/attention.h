#pragma once

#include "ops/attention.h"
#include "ops/cpu/cache_layout.h"
#include "ops/matrix.h"
#include "support/cpu_capability.h"
#include "support/thread_team.h"

namespace dlf::ops {

// Needs the cache as cpu/cache_layout.h lays it out. Takes no scratch memory. Up to kAttentionHeads query heads of one
// key-value head read the cache together.
void attention(const AttentionArgs& args, ThreadTeam& team);

// Does the same for many rows at consecutive positions of one slot, and reads the cache once for kPrefillRows of them.
// Takes scratch memory. Sums in another order, and with AVX-512 BF16 and a cache in bfloat16 rounds queries and weights
// to bfloat16. A row's result does not depend on the other rows.
void prefill_attention(const AttentionArgs& args, ThreadTeam& team);

inline constexpr int64_t kAttentionHeads = 4;

// Groups of query heads that read one key-value head together.
inline int64_t head_groups(const AttentionArgs& args) {
  return (args.heads / args.kv_heads + kAttentionHeads - 1) / kAttentionHeads;
}

// Rows whose queries read a block of the cache together.
inline constexpr int64_t kPrefillRows = 32;
inline constexpr int64_t kPrefillSoftmax = 17;  // words of scratch memory for one query's softmax

// Words of scratch memory for a thread: a block of keys and values, and kPrefillRows rows of queries and sums.
inline int64_t prefill_scratch(const AttentionArgs& args) {
  const int64_t dim = round_up(args.head_dim, 16);  // in whole registers
  return 2 * kCacheBlock * dim + kPrefillRows * (args.heads / args.kv_heads) * (2 * dim + kPrefillSoftmax);
}

// Work items [begin, end) of rows x kv_heads x head_groups().
DLF_CPU_KERNEL(attention_kernel, const AttentionArgs& args, int64_t begin, int64_t end);
// Work items [begin, end) of kv_heads x rows / kPrefillRows, rounded up.
DLF_CPU_KERNEL(prefill_attention_kernel, const AttentionArgs& args, uint32_t* scratch, int64_t begin, int64_t end);

}  // namespace dlf::ops
