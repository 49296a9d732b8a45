#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <string>
#include <unordered_map>
#include <vector>

#include "model/config.h"
#include "model/weights.h"

namespace dlf {

// What an adapter adds to one linear layer: y += scale * (x A^T) B^T (LoRA, Hu et al., arXiv 2106.09685).
struct LowRank {
  at::Tensor a;  // [rank, in]
  at::Tensor b;  // [rank, out]: transposed, so that it is read along the outputs
  float scale = 0;

  bool defined() const { return a.defined(); }
  int64_t rank() const { return a.size(0); }
};

struct LayerAdapter {
  LowRank q, k, v, o, gate, up, down;
};

// The tensors of one adapter: immutable, loaded once, shared by every lane that runs with it.
class Adapter {
 public:
  // Takes tensors of one type under the names of the linear layers that they belong to, as
  // "model.layers.0.self_attn.q_proj.lora_A" and "...lora_B", the second transposed, and the layers' scales. Throws a
  // ValueError that names what does not fit the config.
  Adapter(const ModelConfig& config, const TensorMap& tensors, const std::unordered_map<std::string, double>& scales);

  DType dtype() const { return dtype_; }
  int64_t bytes() const { return bytes_; }
  int64_t max_rank() const { return max_rank_; }

  std::vector<LayerAdapter> layers;

 private:
  DType dtype_ = DType::float32;
  int64_t bytes_ = 0;
  int64_t max_rank_ = 0;
};

// Throws a ValueError unless every update has the type and the shape of the layer that it is for: an adapter that was
// made for another model would be read beyond its end.
void check_fits(const Adapter& adapter, const Weights& weights);

}  // namespace dlf
