#pragma once

#include <ATen/core/Tensor.h>

#include <memory>
#include <vector>

#include "model/weights.h"

namespace dlf::cuda {

// A linear layer on a device. Layers that share their input are one: their outputs lie one after another, each rounded
// up to whole tiles.
struct DeviceLinear {
  at::Tensor weight;   // [out, in], or tiles of int8 or int4
  at::Tensor scale;    // of tiles
  at::Tensor bias;     // [out] float32, or undefined
  ops::Matrix matrix;  // `out` includes the padding
};

// The experts of a layer on a device.
struct DeviceExperts {
  DeviceLinear gate, up, down;  // of all experts, one after another
  at::Tensor table;             // bytes of ops::Expert [experts]
  ops::Expert like;             // the first one
};

struct DeviceLayer {
  NormWeights attention_norm;
  DeviceLinear qkv, o;
  NormWeights q_norm, k_norm;
  NormWeights attention_post_norm;
  NormWeights feed_forward_norm;
  DeviceLinear gate_up, down;  // without gates, up alone; undefined in layers with experts
  DeviceLinear router;
  DeviceExperts experts;
  NormWeights feed_forward_post_norm;
};

// A checkpoint's tensors in the memory of one device.
struct DeviceWeights {
  // Copies on the current stream.
  DeviceWeights(const Weights& weights, int device);

  at::Tensor embedding;
  at::Tensor positions;
  std::vector<DeviceLayer> layers;
  NormWeights norm;
  DeviceLinear head;
};

// Outputs of one of several stacked layers, rounded up to whole tiles.
constexpr int64_t padded_outputs(int64_t out) { return ops::round_up(out, ops::kTileOutputs); }

}  // namespace dlf::cuda
