#pragma once

#include "ops/row.h"
#include "support/cpu_capability.h"
#include "support/dtype.h"
#include "support/thread_team.h"

namespace dlf::ops {

struct AttentionArgs {
  const float* q;       // [rows, heads, head_dim]
  const void* k_cache;  // [slots, kv_heads, max_context, head_dim], of dtype
  const void* v_cache;
  float* y;        // [rows, heads, head_dim]
  const Row* row;  // [rows]; a row sees positions 0 .. row.position of its slot
  int64_t rows;
  int64_t heads;
  int64_t kv_heads;
  int64_t head_dim;
  int64_t max_context;
  int64_t window;  // only the last `window` positions, itself included; 0: all
  float scale;
  DType dtype;
};

// Causal grouped-query attention over the cache, with a running softmax (Milakov and Gimelshein, arXiv 1805.02867), so
// that it needs no scratch memory.
void attention(const AttentionArgs& args, ThreadTeam& team);

// Work items [begin, end) of rows x heads.
DLF_CPU_KERNEL(attention_kernel, const AttentionArgs& args, int64_t begin, int64_t end);

}  // namespace dlf::ops
