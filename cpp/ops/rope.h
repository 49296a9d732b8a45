#pragma once

#include <cstdint>

#include "ops/cache_layout.h"
#include "ops/cpu/row.h"
#include "support/cpu_capability.h"
#include "support/dtype.h"
#include "support/thread_team.h"

namespace dlf::ops {

struct RopeArgs {
  float* q;        // [rows, heads, head_dim], rotated in place
  const float* k;  // [rows, kv_heads, head_dim]
  const float* v;  // [rows, kv_heads, head_dim]
  void* k_cache;   // see cache_layout.h, of dtype
  void* v_cache;
  const float* cos;  // [positions, head_dim / 2]
  const float* sin;
  const Row* row;  // [rows]
  int64_t rows;
  int64_t heads;
  int64_t kv_heads;
  int64_t head_dim;
  int64_t capacity;  // positions of a slot in the cache
  DType dtype;
};

// Rotary position embedding (Su et al., arXiv 2104.09864; halves rotated as in Llama) of q and k, and the write of k
// and v into the cache at each row's slot and position.
void rope_and_cache(const RopeArgs& args, ThreadTeam& team);

DLF_CPU_KERNEL(rope_and_cache_kernel, const RopeArgs& args, int64_t begin, int64_t end);

}  // namespace dlf::ops
