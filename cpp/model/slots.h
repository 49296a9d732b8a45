#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <string>
#include <vector>

#include "model/spec.h"

namespace dlf {

struct ExpertAdapter;
struct ExpertWeights;
struct LayerAdapter;
struct LayerWeights;
struct LinearWeights;
struct LowRank;
struct NormWeights;

// A linear layer of a block: the name of its tensors in every family, and the members that hold them.
struct LinearSlot {
  const char* name;
  int64_t out;
  int64_t in;
  bool bias;
  LinearWeights LayerWeights::* weights;
  LowRank LayerAdapter::* update;
};

// A norm: its weight, and perhaps a bias.
struct NormSlot {
  const char* name;
  int64_t size;
  bool bias;
  NormWeights LayerWeights::* weights;
};

// A linear layer of an expert.
struct ExpertSlot {
  const char* name;
  int64_t out;
  int64_t in;
  LinearWeights ExpertWeights::* weights;
  LowRank ExpertAdapter::* update;
};

// Slots of a layer, of all layers, and of every expert.
std::vector<LinearSlot> linear_slots(const ModelSpec& spec, int64_t layer);
std::vector<ExpertSlot> expert_slots(const ModelSpec& spec);
std::vector<NormSlot> norm_slots(const ModelSpec& spec);

// Name of a layer's slot, such as "3.q".
std::string slot_of(int64_t layer, const char* name);
// The same of an expert's slot, such as "3.experts.7.gate".
std::string slot_of(int64_t layer, int64_t expert, const char* name);

// A tensor that a checkpoint must have.
struct TensorSlot {
  std::string name;  // "embedding", "positions", "3.q", "3.q.bias", "3.router", "3.experts.7.up", "norm", ...
  std::vector<int64_t> shape;
};

// All tensors, in the order in which a pass needs them. The last one is "head", for which a tied embedding stands in.
std::vector<TensorSlot> tensor_slots(const ModelSpec& spec);

}  // namespace dlf
