#pragma once

#include <cstdint>

#include "ops/block_table.h"
#include "ops/norm.h"
#include "ops/places.h"
#include "support/dtype.h"

namespace dlf::ops {

// Norms of queries and keys before the rotation: of each head with a weight that the heads share or with its own, or of
// all heads together.
enum class HeadNorm : int8_t { none, shared, own, whole };

// Rotary position embedding (Su et al., arXiv 2104.09864; halves rotated as in Llama) of q, in place, and of k, which
// goes with v into the cache at each row's slot and position. The first `rotated` elements of a head turn, the others
// stay. Before, heads may be normed, and then q, k and v clipped. Idle rows write nothing.
struct RopeArgs {
  void* q;  // rows [heads, head_dim] of activations, q_stride apart
  void* k;  // rows [kv_heads, head_dim], kv_stride apart; overwritten
  void* v;  // likewise
  int q_stride;
  int kv_stride;
  void* k_cache;  // one layer's, as the backend lays it out, of dtype
  void* v_cache;
  const float* cos;  // [positions, rotated / 2]
  const float* sin;
  const float* q_scale;  // [positions]: multiplies q after the rotation, or null
  HeadNorm head_norm;
  NormOf q_norm;  // weight and bias: [head_dim] if heads share them, else [heads * head_dim]
  NormOf k_norm;
  float clip;  // values are kept from -clip to clip; 0: any
  Places places;
  BlockTable table;
  int heads;
  int kv_heads;
  int head_dim;
  int rotated;
  DType dtype;
};

}  // namespace dlf::ops
