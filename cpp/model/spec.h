#pragma once

#include <cstdint>
#include <vector>

namespace dlf {

// What one decoder-only transformer computes, as data: a file of dlf/families/ makes it from a config.json, block.h
// runs it. Sizes are the same in all layers; what may differ from layer to layer is in LayerSpec.

struct AttentionSpec {
  int64_t heads = 0;
  int64_t kv_heads = 0;
  int64_t head_dim = 0;
  double query_scalar = 0;   // scores are divided by its square root; head_dim in most families
  bool head_norm = false;    // RMSNorm of each head of q and k before the rotation
  bool bias = false;         // of q, k and v
  bool output_bias = false;  // of o

  int64_t q_size() const { return heads * head_dim; }
  int64_t kv_size() const { return kv_heads * head_dim; }
};

// SwiGLU: down(silu(gate(x)) * up(x)).
struct FeedForwardSpec {
  int64_t size = 0;   // outputs of gate and up
  bool bias = false;  // of gate, up and down
};

// How positions rotate queries and keys.
struct RopeSpec {
  std::vector<float> inv_freq;            // [head_dim / 2], after any scaling; zeros leave q and k as they are
  double scaling = 1.0;                   // multiplies cos and sin
  std::vector<float> long_inv_freq = {};  // for contexts of more than short_context positions; empty: inv_freq
  int64_t short_context = 0;

  const std::vector<float>& frequencies(int64_t context) const {
    return long_inv_freq.empty() || context <= short_context ? inv_freq : long_inv_freq;
  }
};

struct LayerSpec {
  int64_t window = 0;  // positions that a token sees, itself included; 0: all
  int64_t rope = 0;    // index in ModelSpec::ropes
};

struct ModelSpec {
  int64_t vocab_size = 0;
  int64_t hidden_size = 0;
  double norm_epsilon = 1e-6;
  AttentionSpec attention;
  FeedForwardSpec feed_forward;
  std::vector<RopeSpec> ropes;
  std::vector<LayerSpec> layers;

  int64_t layer_count() const { return static_cast<int64_t>(layers.size()); }
};

// Throws a ValueError that names the first size that is out of range or does not fit the others.
void check(const ModelSpec& spec);

}  // namespace dlf
