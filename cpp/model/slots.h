#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <string>
#include <vector>

#include "model/spec.h"

namespace dlf {

struct LayerAdapter;
struct LayerWeights;
struct LinearWeights;
struct LowRank;

// A linear layer of a layer: what its tensors are called in every family, and where they go.
struct LinearSlot {
  const char* name;
  int64_t out;
  int64_t in;
  bool bias;
  LinearWeights LayerWeights::* weights;
  LowRank LayerAdapter::* update;
};

// A norm's weight.
struct VectorSlot {
  const char* name;
  int64_t size;
  at::Tensor LayerWeights::* weight;
};

// Those that each layer has.
std::vector<LinearSlot> linear_slots(const ModelSpec& spec);
std::vector<VectorSlot> vector_slots(const ModelSpec& spec);

// The name of a layer's slot, as "3.q".
std::string slot_of(int64_t layer, const char* name);

// A tensor that a checkpoint must have.
struct TensorSlot {
  std::string name;  // "embedding", "3.q", "3.q.bias", "norm", ...
  std::vector<int64_t> shape;
};

// All of them, in the order in which a pass needs them. The last one is "head", which a tied embedding stands in for.
std::vector<TensorSlot> tensor_slots(const ModelSpec& spec);

}  // namespace dlf
