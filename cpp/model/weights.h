#pragma once

#include <ATen/core/Tensor.h>

#include <string>
#include <unordered_map>
#include <vector>

#include "model/spec.h"
#include "ops/experts.h"
#include "ops/matrix.h"
#include "support/dtype.h"

namespace dlf {

ops::MatrixType float_type(DType dtype);

// The nearest number that the type holds.
float rounded(double value, DType dtype);

using TensorMap = std::unordered_map<std::string, at::Tensor>;

struct LinearWeights {
  at::Tensor weight;  // [out, in], or tiles of int8 or int4
  at::Tensor scale;   // of tiles
  at::Tensor bias;    // [out] float32, or undefined
  ops::Matrix matrix;
};

struct NormWeights {
  at::Tensor weight;  // [size] float32, or undefined: no norm
  at::Tensor bias;    // likewise

  bool defined() const { return weight.defined(); }
};

struct ExpertWeights {
  LinearWeights gate, up, down;
};

struct LayerWeights {
  NormWeights attention_norm;
  LinearWeights q, k, v, o;
  NormWeights q_norm, k_norm;
  NormWeights attention_post_norm;  // of the output of attention
  NormWeights feed_forward_norm;
  LinearWeights gate, up, down;        // in layers without experts
  LinearWeights router;                // of floats
  std::vector<ExpertWeights> experts;  // of one type
  std::vector<ops::Expert> expert_matrices;
  NormWeights feed_forward_post_norm;
};

// The tensors and spec of one checkpoint: immutable, loaded once, shared by every lane that runs on it.
class Weights {
 public:
  // Takes tensors under the names of their slots (slots.h), checks their shapes against the spec (ValueError names the
  // slot) and keeps those it needs. Matrices stay where they are, on whatever device; vectors become float32. The
  // weight of a linear layer may be tiles of int8 or int4 (ops/matrix.h) with their scales, "3.q.scale"; all layers
  // have one type. Without "head" the embedding is tied.
  Weights(ModelSpec spec, const TensorMap& tensors);

  const ModelSpec& spec() const { return spec_; }
  DType dtype() const { return dtype_; }  // of the embedding and of the KV cache
  ops::MatrixType type() const { return head.matrix.type; }
  int64_t bytes() const { return bytes_; }

  at::Tensor embedding;  // [vocab, hidden]
  at::Tensor positions;  // [learned_positions, hidden], or undefined
  std::vector<LayerWeights> layers;
  NormWeights norm;
  LinearWeights head;

 private:
  at::Tensor take(const TensorMap& tensors, const std::string& name, at::IntArrayRef shape);
  at::Tensor vector(const TensorMap& tensors, const std::string& name, int64_t size);
  NormWeights norm_of(const TensorMap& tensors, const std::string& name, int64_t size, bool bias);
  LinearWeights linear(const TensorMap& tensors, const std::string& name, int64_t out, int64_t in, bool bias);
  at::Tensor take_tiles(const TensorMap& tensors, const std::string& name, at::ScalarType type, at::IntArrayRef shape);

  ModelSpec spec_;
  DType dtype_ = DType::float32;
  int64_t bytes_ = 0;
};

}  // namespace dlf
