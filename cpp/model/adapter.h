#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <string>
#include <unordered_map>
#include <vector>

#include "model/spec.h"
#include "model/weights.h"
#include "ops/lora.h"

namespace dlf {

// What an adapter adds to one linear layer: y += scale * (x A^T) B^T (LoRA, Hu et al., arXiv 2106.09685).
struct LowRank {
  at::Tensor a;  // [rank, in]
  at::Tensor b;  // [rank, out]: transposed, so that it is read along the outputs
  float scale = 0;

  bool defined() const { return a.defined(); }
  int64_t rank() const { return a.size(0); }
  // Pointers and sizes for operations; of rank 0 if undefined.
  ops::LoraUpdate update() const {
    return defined() ? ops::LoraUpdate{a.const_data_ptr(), b.const_data_ptr(), scale, static_cast<int>(a.size(0)),
                                       static_cast<int>(b.size(1))}
                     : ops::LoraUpdate{};
  }
};

struct LayerAdapter {
  LowRank q, k, v, o, gate, up, down;
};

// The tensors of one adapter: immutable, loaded once, shared by every lane that runs with it.
class Adapter {
 public:
  // Takes tensors of one type under the slots of their linear layers, such as "0.q.a" and, transposed, "0.q.b"; and the
  // layers' scales, such as "0.q". Throws a ValueError that names what does not fit the spec.
  Adapter(const ModelSpec& spec, const TensorMap& tensors, const std::unordered_map<std::string, double>& scales);

  DType dtype() const { return dtype_; }
  int64_t bytes() const { return bytes_; }
  int64_t max_rank() const { return max_rank_; }

  std::vector<LayerAdapter> layers;

 private:
  DType dtype_ = DType::float32;
  int64_t bytes_ = 0;
  int64_t max_rank_ = 0;
};

// Throws a ValueError unless every update has the type and the shape of its layer: an adapter made for another model
// would be read beyond its end.
void check_fits(const Adapter& adapter, const Weights& weights);

}  // namespace dlf
