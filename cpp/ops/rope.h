#pragma once

#include "ops/block_table.h"
#include "ops/places.h"
#include "support/dtype.h"

namespace dlf::ops {

// Rotary position embedding (Su et al., arXiv 2104.09864; halves rotated as in Llama) of q, in place, and of k, which
// goes with v into the cache at each row's slot and position. The first `rotated` elements of a head turn, the others
// stay. Idle rows write nothing.
struct RopeArgs {
  void* q;  // rows [heads, head_dim] of activations, q_stride apart
  void* k;  // rows [kv_heads, head_dim], kv_stride apart; overwritten
  const void* v;
  int q_stride;
  int kv_stride;
  void* k_cache;  // one layer's, as the backend lays it out, of dtype
  void* v_cache;
  const float* cos;  // [positions, rotated / 2]
  const float* sin;
  const float* q_scale;  // [positions]: multiplies q after the rotation, or null
  // RMSNorm before the rotation, or null: of each head, [head_dim], or of all of them together, [heads * head_dim] and
  // [kv_heads * head_dim].
  const float* q_norm;
  const float* k_norm;
  bool whole_norm;
  float epsilon;
  Places places;
  BlockTable table;
  int heads;
  int kv_heads;
  int head_dim;
  int rotated;
  DType dtype;
};

}  // namespace dlf::ops
