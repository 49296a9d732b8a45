#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <string>
#include <unordered_map>
#include <vector>

#include "model/spec.h"
#include "model/weights.h"
#include "ops/embedding.h"
#include "ops/lora.h"
#include "ops/own_logits.h"

namespace dlf {

// What an adapter adds to one linear layer: y += scale * (x A^T) B^T (LoRA, Hu et al., arXiv 2106.09685).
struct LowRank {
  at::Tensor a;  // [rank, in]
  at::Tensor b;  // [rank, out]: transposed, so that it is read along the outputs
  float scale = 0;

  bool defined() const { return a.defined(); }
  int64_t rank() const { return b.size(0); }
  // Pointers and sizes for operations; of rank 0 if undefined.
  ops::LoraUpdate update() const {
    return defined() ? ops::LoraUpdate{a.const_data_ptr(), b.const_data_ptr(), scale, static_cast<int>(rank()),
                                       static_cast<int>(b.size(1))}
                     : ops::LoraUpdate{};
  }
};

// Rows of the embedding or the head [vocab, hidden] that an adapter has of its own.
struct OwnRows {
  at::Tensor rows;    // [count, hidden]
  at::Tensor tokens;  // int32 [count], or undefined: all tokens in order
  at::Tensor row_of;  // int32 [vocab]: the row of each token, −1: none; undefined like `tokens`

  bool defined() const { return rows.defined(); }
  bool whole() const { return defined() && !tokens.defined(); }
  // Pointers for operations; without rows if undefined.
  ops::OwnEmbedding embedding() const;
  ops::OwnLogits logits() const;
};

// What an adapter changes in the embedding or the head.
struct TableAdapter {
  LowRank update;  // of the embedding: `a` is [vocab, rank], so that a token's is a row
  OwnRows own;
};

struct ExpertAdapter {
  LowRank gate, up, down;
};

struct LayerAdapter {
  LowRank q, k, v, o, gate, up, down, router;
  std::vector<ExpertAdapter> experts;  // of all, or none
};

// The tensors of one adapter: immutable, loaded once, shared by every lane that runs with it.
class Adapter {
 public:
  // Takes tensors of one type under the slots of their linear layers, such as "0.q.a" and, transposed, "0.q.b"; and the
  // layers' scales, such as "0.q". "embedding.a", transposed, "embedding.b", "head.a" and "head.b" are likewise;
  // "embedding.rows" and "head.rows" replace rows, all of them or, with "embedding.tokens" and "head.tokens" (int32),
  // those of some tokens. Throws a ValueError that names what does not fit the spec.
  Adapter(const ModelSpec& spec, const TensorMap& tensors, const std::unordered_map<std::string, double>& scales);

  DType dtype() const { return dtype_; }
  int64_t bytes() const { return bytes_; }
  int64_t max_rank() const { return max_rank_; }
  int64_t expert_rank() const { return expert_rank_; }  // largest rank of experts' layers; 0: none is adapted

  TableAdapter embedding, head;
  std::vector<LayerAdapter> layers;

 private:
  DType dtype_ = DType::float32;
  int64_t bytes_ = 0;
  int64_t max_rank_ = 0;
  int64_t expert_rank_ = 0;
};

// Throws a ValueError unless every update has the type and the shape of its layer: an adapter made for another model
// would be read beyond its end.
void check_fits(const Adapter& adapter, const Weights& weights);

}  // namespace dlf
