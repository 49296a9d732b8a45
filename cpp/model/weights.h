#pragma once

#include <ATen/core/Tensor.h>

#include <memory>
#include <string>
#include <unordered_map>
#include <vector>

#include "model/device_copies.h"
#include "model/spec.h"
#include "ops/experts.h"
#include "ops/tiles.h"
#include "support/dtype.h"

namespace dlf {

struct Shard;
class Weights;

ops::MatrixType float_type(DType dtype);

// The nearest number that the type holds.
float rounded(double value, DType dtype);

namespace cuda {
struct DeviceWeights;  // model/cuda/weights.h
}

using TensorMap = std::unordered_map<std::string, at::Tensor>;

struct LinearWeights {
  ops::Tiles tensors;  // tiles, or only data: floats [out, in]
  at::Tensor bias;     // [out] float32, or undefined
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
  LinearWeights gate, up, down;        // in layers with experts, the shared one's
  LinearWeights router;                // of floats
  LinearWeights shared_router;         // likewise, [1, hidden]
  std::vector<ExpertWeights> experts;  // stored alike
  std::vector<ops::Expert> expert_matrices;
  NormWeights feed_forward_post_norm;
};

// The tensors and spec of one checkpoint: immutable, loaded once, shared by every lane that runs on it.
class Weights {
 public:
  // Takes tensors under the names of their slots (slots.h), checks their shapes against the spec (ValueError names the
  // slot) and keeps those it needs. Matrices stay where they are, on whatever device; vectors become float32. The
  // embedding and the weight of any linear layer may be tiles (ops/tiles.h) with "3.q.scale" and so on beside it.
  // Without "head" the embedding is tied.
  Weights(ModelSpec spec, const TensorMap& tensors);

  const ModelSpec& spec() const { return spec_; }
  DType dtype() const { return dtype_; }         // of vectors, of matrices of floats and of the KV cache
  bool quantized() const { return quantized_; }  // whether any matrix is
  std::vector<ops::MatrixType> types() const;    // of the linear layers, the one with most bytes first
  int64_t bytes() const { return bytes_; }
  // Those of the decoders that run on CUDA devices.
  DeviceCopies<cuda::DeviceWeights>& device_copies() const { return *device_copies_; }

  LinearWeights embedding;  // [vocab, hidden], without bias; of tied weights it is the head's
  at::Tensor positions;     // [learned_positions, hidden], or undefined
  std::vector<LayerWeights> layers;
  NormWeights norm;
  LinearWeights head;

 private:
  friend Weights shard_of(const Weights& weights, const Shard& shard);

  at::Tensor take(const TensorMap& tensors, const std::string& name, at::IntArrayRef shape);
  at::Tensor vector(const TensorMap& tensors, const std::string& name, int64_t size);
  NormWeights norm_of(const TensorMap& tensors, const std::string& name, int64_t size, bool bias);
  LinearWeights linear(const TensorMap& tensors, const std::string& name, int64_t out, int64_t in, bool bias);

  ModelSpec spec_;
  DType dtype_ = DType::float32;
  bool quantized_ = false;
  int64_t bytes_ = 0;
  std::shared_ptr<DeviceCopies<cuda::DeviceWeights>> device_copies_ =
      std::make_shared<DeviceCopies<cuda::DeviceWeights>>();
};

}  // namespace dlf
