#pragma once

#include <cmath>
#include <concepts>
#include <cstdint>

#include "model/spec.h"
#include "model/weights.h"
#include "ops/attention.h"
#include "ops/embedding.h"
#include "ops/logits.h"
#include "ops/norm.h"
#include "ops/places.h"
#include "ops/rope.h"

// The layers of a decoder-only transformer, written once for all backends. This file says what a layer computes, in
// which order and with which numbers; a backend's pass holds the buffers and launches the operations, fused to suit its
// device.
namespace dlf {

// Buffers of one layer's attention, in the backend's layout.
struct AttentionBuffers {
  void* q;  // rows [heads, head_dim], q_stride apart
  void* k;  // rows [kv_heads, head_dim], kv_stride apart
  void* v;
  int q_stride;
  int kv_stride;
  void* attended;  // [rows, heads, head_dim]
  void* keys;      // of the cache
  void* values;
  ops::BlockTable table;
  ops::Places places;
  const float* cos;  // of the layer's rotation
  const float* sin;
  const float* q_scale;  // null where the layer has none
  int rotated;           // elements of a head
  ops::NormOf q_norm;
  ops::NormOf k_norm;
  DType dtype;
};

// One pass of some rows through the layers of one backend. The stream is the residual stream; each row has its own.
template <typename P>
concept BlockPass = requires(P& pass, int64_t layer) {
  { pass.spec() } -> std::convertible_to<const ModelSpec&>;
  pass.norm_for_attention(layer);     // normed = norm(stream), or the stream itself
  pass.norm_for_feed_forward(layer);  // likewise
  pass.project_heads(layer);          // q, k, v = projections of normed
  pass.rope_and_cache(layer);         // norms, clips and rotates q and k; k goes into the cache with v: rope_args()
  pass.attend(layer);                 // attended = attention over the cache: attention_args()
  pass.add_attention(layer);          // stream += o(attended), normed and multiplied where the spec says so
  pass.gate(layer);              // activated = activation(gate(normed)) * up(normed), times a shared expert's weight
  pass.add_feed_forward(layer);  // stream += down(activated), likewise
  pass.route(layer);             // chooses the experts of each row by normed, and weighs the shared one
  pass.add_experts(layer);       // stream += the mixture of the experts of normed, likewise
};

inline ops::RopeArgs rope_args(const ModelSpec& spec, const AttentionBuffers& buffers) {
  const AttentionSpec& attention = spec.attention;
  ops::RopeArgs args = {};
  args.q = buffers.q;
  args.k = buffers.k;
  args.v = buffers.v;
  args.q_stride = buffers.q_stride;
  args.kv_stride = buffers.kv_stride;
  args.k_cache = buffers.keys;
  args.v_cache = buffers.values;
  args.cos = buffers.cos;
  args.sin = buffers.sin;
  args.q_scale = buffers.q_scale;
  args.q_norm = buffers.q_norm;
  args.k_norm = buffers.k_norm;
  args.head_norm = attention.head_norm;
  args.clip = static_cast<float>(attention.clip);
  args.places = buffers.places;
  args.table = buffers.table;
  args.heads = static_cast<int>(attention.heads);
  args.kv_heads = static_cast<int>(attention.kv_heads);
  args.head_dim = static_cast<int>(attention.head_dim);
  args.rotated = buffers.rotated;
  args.dtype = buffers.dtype;
  return args;
}

inline ops::AttentionArgs attention_args(const ModelSpec& spec, int64_t layer, const AttentionBuffers& buffers) {
  const AttentionSpec& attention = spec.attention;
  ops::AttentionArgs args = {};
  args.q = buffers.q;
  args.q_stride = buffers.q_stride;
  args.k_cache = buffers.keys;
  args.v_cache = buffers.values;
  args.y = buffers.attended;
  args.places = buffers.places;
  args.table = buffers.table;
  args.heads = static_cast<int>(attention.heads);
  args.kv_heads = static_cast<int>(attention.kv_heads);
  args.head_dim = static_cast<int>(attention.head_dim);
  args.window = static_cast<int>(spec.layers[layer].window);
  args.scale = 1.0F / std::sqrt(static_cast<float>(attention.query_scalar));
  args.softcap = static_cast<float>(attention.softcap);
  args.dtype = buffers.dtype;
  return args;
}

// The embedding's arguments, but for the rows.
inline ops::EmbeddingArgs embedding_args(const ModelSpec& spec, const ops::Matrix& embedding,
                                         const at::Tensor& positions, DType dtype) {
  ops::EmbeddingArgs args = {};
  args.weight = embedding;
  args.dtype = dtype;
  args.multiplier = rounded(spec.embedding_multiplier, dtype);
  args.positions = positions.defined() ? positions.const_data_ptr() : nullptr;
  return args;
}

inline ops::NormOf norm_of(const ModelSpec& spec, const NormWeights& weights) {
  const auto data = [](const at::Tensor& tensor) {
    return tensor.defined() ? tensor.const_data_ptr<float>() : nullptr;
  };
  return {data(weights.weight), static_cast<float>(spec.norm.epsilon), spec.norm.kind, data(weights.bias)};
}

// Whether a head's logits are final; else they need logit_args().
inline bool are_final(const ModelSpec& spec) { return spec.logit_multiplier == 1 && spec.logit_softcap == 0; }
inline ops::LogitArgs logit_args(const ModelSpec& spec, float* y, int rows) {
  return {y, rows, static_cast<int>(spec.vocab_size), static_cast<float>(spec.logit_multiplier),
          static_cast<float>(spec.logit_softcap)};
}

// Computes attention's output, still to be projected.
template <BlockPass P>
void attend(P& pass, int64_t layer) {
  pass.norm_for_attention(layer);
  pass.project_heads(layer);
  pass.rope_and_cache(layer);
  pass.attend(layer);
}

// Reads the normed stream.
template <BlockPass P>
void feed_forward(P& pass, int64_t layer) {
  if (pass.spec().layers[layer].experts) {
    pass.route(layer);
    pass.add_experts(layer);
    if (pass.spec().experts.shared_size == 0) {
      return;
    }
  }
  pass.gate(layer);
  pass.add_feed_forward(layer);
}

// Runs all layers, from the embedding to the stream that the last norm reads.
template <BlockPass P>
void run_layers(P& pass) {
  for (int64_t layer = 0; layer < pass.spec().layer_count(); ++layer) {
    attend(pass, layer);
    if (!pass.spec().parallel) {
      pass.add_attention(layer);
    }
    if (!pass.spec().norm.shared) {
      pass.norm_for_feed_forward(layer);
    }
    if (pass.spec().parallel) {
      pass.add_attention(layer);
    }
    feed_forward(pass, layer);
  }
}

}  // namespace dlf
