#pragma once

#include <cstdint>
#include <vector>

#include "ops/activation.h"
#include "ops/norm.h"
#include "ops/rope.h"

namespace dlf {

// What one decoder-only transformer computes, as data: a file of dlf/families/ makes it from a config.json, block.h
// runs it. Sizes are the same in all layers; what may differ from layer to layer is in LayerSpec.

// The norms of the residual stream.
struct NormSpec {
  ops::NormKind kind = ops::NormKind::rms;
  double epsilon = 1e-6;
  bool offset = false;  // files hold weights less 1, as Gemma's do; those of heads too
  bool bias = false;
  bool before = true;   // attention and feed-forward read the normed stream, else the stream itself
  bool after = false;   // their outputs are normed before they are added to it
  bool shared = false;  // the feed-forward reads what attention reads; of parallel blocks
};

struct AttentionSpec {
  int64_t heads = 0;
  int64_t kv_heads = 0;
  int64_t head_dim = 0;
  double query_scalar = 0;                        // scores are divided by its square root; head_dim in most families
  double softcap = 0;                             // scores s become softcap * tanh(s / softcap); 0: they stay
  ops::HeadNorm head_norm = ops::HeadNorm::none;  // of NormSpec's kind
  bool head_norm_bias = false;
  double clip = 0;           // q, k and v are kept from -clip to clip before the rotation; 0: any values
  bool bias = false;         // of q, k and v
  bool output_bias = false;  // of o

  int64_t q_size() const { return heads * head_dim; }
  int64_t kv_size() const { return kv_heads * head_dim; }
};

// down(activation(gate(x)) * up(x)), or down(activation(up(x))) without gates.
struct FeedForwardSpec {
  int64_t size = 0;  // outputs of gate and up
  ops::Activation activation = ops::Activation::silu;
  bool gated = true;
  bool bias = false;  // of gate, up and down
};

// A mixture of experts in place of one feed-forward: a router chooses some of them for each token. They have the gates
// and the activation of FeedForwardSpec, and no biases.
struct ExpertsSpec {
  int64_t count = 0;           // 0: no layer has experts
  int64_t chosen = 0;          // for each token
  int64_t size = 0;            // outputs of gate and up of each expert
  bool normalise = false;      // the weights of the chosen experts add up to 1
  int64_t shared_size = 0;     // the same of an expert that every token gets; 0: none
  bool shared_router = false;  // the sigmoid of a product with each token is that expert's weight, else 1
};

// How positions change queries and keys.
struct RopeSpec {
  std::vector<float> inv_freq;            // after any scaling; where fewer than head_dim / 2, the rest of a head stays
  double scaling = 1.0;                   // multiplies cos and sin
  std::vector<float> long_inv_freq = {};  // for contexts of more than short_context positions; empty: inv_freq
  int64_t short_context = 0;
  // Queries at position p are multiplied by 1 + query_beta * log(1 + floor(p / query_positions)), as in Llama 4.
  double query_beta = 0;
  int64_t query_positions = 0;

  const std::vector<float>& frequencies(int64_t context) const {
    return long_inv_freq.empty() || context <= short_context ? inv_freq : long_inv_freq;
  }
};

struct LayerSpec {
  int64_t window = 0;  // positions that a token sees, itself included; 0: all
  int64_t rope = 0;    // index in ModelSpec::ropes
  bool experts = false;
};

struct ModelSpec {
  int64_t vocab_size = 0;
  int64_t hidden_size = 0;
  int64_t learned_positions = 0;    // rows of a table that is added to the embedding; 0: none
  double embedding_multiplier = 1;  // rounded to the type of the weights, as Gemma does
  NormSpec norm;
  AttentionSpec attention;
  FeedForwardSpec feed_forward;  // of layers without experts
  ExpertsSpec experts;
  bool parallel = false;  // attention and feed-forward read the same stream
  bool head_bias = false;
  double residual_multiplier = 1;  // of what they add to it
  double logit_multiplier = 1;
  double logit_softcap = 0;  // as AttentionSpec::softcap, after the multiplier
  std::vector<RopeSpec> ropes;
  std::vector<LayerSpec> layers;

  int64_t layer_count() const { return static_cast<int64_t>(layers.size()); }
  // Outputs of gate and up in the layers without experts, and of shared experts; 0 if there are neither.
  int64_t dense_size() const;
};

// Throws a ValueError that names the first size that is out of range or does not fit the others.
void check(const ModelSpec& spec);

// Throws a ValueError unless the model has a place for every position of a context.
void check_context(const ModelSpec& spec, int64_t max_context);

}  // namespace dlf
