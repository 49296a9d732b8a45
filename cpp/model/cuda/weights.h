#pragma once

#include <ATen/core/Tensor.h>

#include <memory>
#include <vector>

#include "model/weights.h"
#include "support/cuda/runtime.h"

namespace dlf::cuda {

// A linear layer on a device, or several that share their input and are stored alike: their outputs lie one after
// another, each rounded up to whole tiles.
struct DeviceLinear {
  ops::Tiles tensors;  // tiles, or only data: floats [out, in]
  at::Tensor bias;     // [out] float32, or undefined
  ops::Matrix matrix;  // `out` includes the padding
  int64_t first = 0;   // column of its first output, among those of all layers with this input
};

// The experts of a layer on a device.
struct DeviceExperts {
  DeviceLinear gate, up, down;  // of all experts, one after another
  at::Tensor table;             // bytes of ops::Expert [experts]
  ops::Expert like;             // the first one
};

struct DeviceLayer {
  NormWeights attention_norm;
  std::vector<DeviceLinear> qkv, o;
  NormWeights q_norm, k_norm;
  NormWeights attention_post_norm;
  NormWeights feed_forward_norm;
  std::vector<DeviceLinear> gate_up, down;  // without gates, up alone; empty in layers with routed experts alone
  std::vector<DeviceLinear> router, shared_router;
  DeviceExperts experts;
  NormWeights feed_forward_post_norm;
};

// A checkpoint's tensors in the memory of one device.
struct DeviceWeights {
  // Copies on the current stream.
  DeviceWeights(const Weights& weights, int device);

  // The copy on the device of a queue, which all decoders of a checkpoint share; made on that queue if it is the first.
  static std::shared_ptr<const DeviceWeights> of(const Weights& weights, Queue& queue);

  DeviceLinear embedding;
  at::Tensor positions;
  std::vector<DeviceLayer> layers;
  NormWeights norm;
  std::vector<DeviceLinear> head;
};

// Outputs of one of several stacked layers, rounded up to whole tiles.
constexpr int64_t padded_outputs(int64_t out) { return ops::round_up(out, ops::kTileOutputs); }

}  // namespace dlf::cuda
