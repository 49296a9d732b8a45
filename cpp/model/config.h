#pragma once

#include <cstdint>
#include <vector>

namespace dlf {

// The shape of one decoder-only transformer, in the names of Hugging Face's config.json.
struct ModelConfig {
  int64_t vocab_size = 0;
  int64_t hidden_size = 0;
  int64_t intermediate_size = 0;
  int64_t num_hidden_layers = 0;
  int64_t num_attention_heads = 0;
  int64_t num_key_value_heads = 0;
  int64_t head_dim = 0;
  double rms_norm_eps = 1e-6;
  std::vector<int64_t> sliding_windows;  // per layer; 0: full attention
  std::vector<float> inv_freq;           // [head_dim / 2], after any rope scaling
  double rope_scaling_factor = 1.0;      // multiplies cos and sin
};

}  // namespace dlf
