#pragma once

#include "ops/block_table.h"
#include "ops/places.h"
#include "support/dtype.h"

namespace dlf::ops {

// Causal grouped-query attention over the cache, with a running softmax (Milakov and Gimelshein, arXiv 1805.02867): a
// row sees the positions of its slot up to its own. The result does not depend on the other rows.
struct AttentionArgs {
  const void* q;        // rows [heads, head_dim] of activations, q_stride apart
  int q_stride;         // elements
  const void* k_cache;  // one layer's, as the backend lays it out, of dtype
  const void* v_cache;
  void* y;  // [rows, heads, head_dim], activations; zeros for idle rows
  Places places;
  BlockTable table;
  int heads;
  int kv_heads;
  int head_dim;
  int window;   // only the last `window` positions, itself included; 0: all
  float scale;  // of the scores
  DType dtype;
  float softcap = 0.0F;  // scores s become softcap * tanh(s / softcap); 0: they stay
};

}  // namespace dlf::ops
