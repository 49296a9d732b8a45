#pragma once

#include "ops/places.h"
#include "support/dtype.h"

namespace dlf::ops {

// Rotary position embedding (Su et al., arXiv 2104.09864; halves rotated as in Llama) of q, in place, and of k, which
// goes with v into the cache at each row's slot and position. Idle rows write nothing.
struct RopeArgs {
  void* q;  // rows [heads, head_dim] of activations, q_stride apart
  void* k;  // rows [kv_heads, head_dim], kv_stride apart; overwritten
  const void* v;
  int q_stride;
  int kv_stride;
  void* k_cache;  // one layer's, as the backend lays it out, of dtype
  void* v_cache;
  const float* cos;  // [positions, head_dim / 2]
  const float* sin;
  const float* q_norm;  // [head_dim]: RMSNorm of each head before the rotation, or null
  const float* k_norm;
  float epsilon;
  Places places;
  int heads;
  int kv_heads;
  int head_dim;
  int capacity;  // positions of a slot
  DType dtype;
};

}  // namespace dlf::ops
