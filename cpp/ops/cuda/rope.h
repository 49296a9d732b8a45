#pragma once

#include <cstdint>

#include "support/cuda/stream.h"
#include "support/dtype.h"

namespace dlf::cuda {

struct RopeArgs {
  void* qkv;  // [rows, stride], of dtype: q [heads, head_dim] at 0, k and v [kv_heads, head_dim] at their offsets
  int stride;
  int k_offset;
  int v_offset;
  void* k_cache;  // [slots, kv_heads, capacity, head_dim], of dtype
  void* v_cache;
  const float* cos;  // [positions, head_dim / 2]
  const float* sin;
  const float* q_norm;  // [head_dim]: RMSNorm of each head before the rotation, or null
  const float* k_norm;
  float epsilon;
  const int32_t* position;  // [rows], -1: the row writes nothing; null: row r stands at start + r
  int start;
  int slot;   // of all rows; -1: row r has slot r % slots
  int slots;  //
  int rows;
  int heads;
  int kv_heads;
  int head_dim;
  int capacity;
  DType dtype;
};

// Rotary position embedding (Su et al., arXiv 2104.09864; halves rotated as in Llama) of q, in place, and of k, which
// goes with v into the cache at each row's slot and position.
void rope_and_cache(const RopeArgs& args, Stream stream);

}  // namespace dlf::cuda
