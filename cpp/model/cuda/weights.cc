#include "model/cuda/weights.h"

#include <ATen/ops/from_blob.h>
#include <ATen/ops/zeros.h>

#include <cstddef>
#include <vector>

#include "support/cuda/runtime.h"

namespace dlf::cuda {
namespace {

// Copies even a tensor that is on the device: a checkpoint's tensors may begin at any address, and kernels read 16
// bytes at once.
at::Tensor to_device(const at::Tensor& tensor, int device) {
  return tensor.defined() ? tensor.to(on_device(device).dtype(tensor.scalar_type()), /*non_blocking=*/false,
                                      /*copy=*/true)
                          : at::Tensor();
}

NormWeights to_device(const NormWeights& norm, int device) {
  return {to_device(norm.weight, device), to_device(norm.bias, device)};
}

// Concatenates tensors; each begins at a multiple of `rows`.
at::Tensor stack(const std::vector<at::Tensor>& parts, int64_t rows, int device) {
  int64_t total = 0;
  for (const at::Tensor& part : parts) {
    total += ops::round_up(part.size(0), rows);
  }
  std::vector<int64_t> shape = parts[0].sizes().vec();
  shape[0] = total;
  at::Tensor stacked = at::zeros(shape, on_device(device).dtype(parts[0].scalar_type()));
  int64_t begin = 0;
  for (const at::Tensor& part : parts) {
    stacked.narrow(0, begin, part.size(0)).copy_(part);
    begin += ops::round_up(part.size(0), rows);
  }
  return stacked;
}

DeviceLinear linear(const std::vector<const LinearWeights*>& parts, int device) {
  std::vector<at::Tensor> weights;
  std::vector<at::Tensor> scales;
  std::vector<at::Tensor> biases;
  int64_t out = 0;
  bool biased = false;
  for (const LinearWeights* part : parts) {
    out += parts.size() > 1 ? padded_outputs(part->matrix.out) : part->matrix.out;
    biased = biased || part->bias.defined();
  }
  for (const LinearWeights* part : parts) {
    weights.push_back(part->weight);
    scales.push_back(part->scale);
    biases.push_back(part->bias.defined() ? part->bias : at::zeros({part->matrix.out}, at::kFloat));
  }
  const ops::Matrix& first = (*parts.begin())->matrix;
  const bool tiled = ops::is_quantized(first.type);
  const int64_t rows = parts.size() > 1 && !tiled ? ops::kTileOutputs : 1;  // tiles are already whole
  DeviceLinear stacked;
  stacked.weight = stack(weights, rows, device);
  stacked.scale = tiled ? stack(scales, 1, device) : at::Tensor();
  stacked.bias = biased ? stack(biases, parts.size() > 1 ? ops::kTileOutputs : 1, device) : at::Tensor();
  stacked.matrix = first;
  stacked.matrix.out = out;
  stacked.matrix.data = stacked.weight.const_data_ptr();
  stacked.matrix.scale = tiled ? stacked.scale.const_data_ptr() : nullptr;
  return stacked;
}

DeviceExperts experts(const LayerWeights& layer, int device) {
  std::vector<ops::Expert> matrices = layer.expert_matrices;
  const auto put = [&](LinearWeights ExpertWeights::* member, ops::Matrix ops::Expert::* matrix) {
    std::vector<const LinearWeights*> parts;
    for (const ExpertWeights& expert : layer.experts) {
      parts.push_back(&(expert.*member));
    }
    DeviceLinear stacked = linear(parts, device);
    const auto count = static_cast<int64_t>(parts.size());
    const auto address = [&](const at::Tensor& tensor, int64_t e) -> const void* {
      return tensor.defined() ? static_cast<const std::byte*>(tensor.const_data_ptr()) + tensor.nbytes() / count * e
                              : nullptr;
    };
    for (int64_t e = 0; e < count; ++e) {
      (matrices[e].*matrix).data = address(stacked.weight, e);
      (matrices[e].*matrix).scale = address(stacked.scale, e);
    }
    return stacked;
  };
  DeviceExperts found;
  found.gate = put(&ExpertWeights::gate, &ops::Expert::gate);
  found.up = put(&ExpertWeights::up, &ops::Expert::up);
  found.down = put(&ExpertWeights::down, &ops::Expert::down);
  const auto bytes = static_cast<int64_t>(matrices.size() * sizeof(ops::Expert));
  found.table = to_device(at::from_blob(matrices.data(), {bytes}, at::kByte), device);
  found.like = matrices[0];
  return found;
}

}  // namespace

DeviceWeights::DeviceWeights(const Weights& weights, int device)
    : embedding(to_device(weights.embedding, device)),
      positions(to_device(weights.positions, device)),
      norm(to_device(weights.norm, device)) {
  const bool gated = weights.spec().feed_forward.gated;
  for (const LayerWeights& layer : weights.layers) {
    DeviceLayer& to = layers.emplace_back();
    to.attention_norm = to_device(layer.attention_norm, device);
    to.qkv = linear({&layer.q, &layer.k, &layer.v}, device);
    to.o = linear({&layer.o}, device);
    to.q_norm = to_device(layer.q_norm, device);
    to.k_norm = to_device(layer.k_norm, device);
    to.attention_post_norm = to_device(layer.attention_post_norm, device);
    to.feed_forward_norm = to_device(layer.feed_forward_norm, device);
    if (layer.experts.empty()) {
      to.gate_up = gated ? linear({&layer.gate, &layer.up}, device) : linear({&layer.up}, device);
      to.down = linear({&layer.down}, device);
    } else {
      to.router = linear({&layer.router}, device);
      to.experts = experts(layer, device);
    }
    to.feed_forward_post_norm = to_device(layer.feed_forward_post_norm, device);
  }
  if (weights.head.weight.is_same(weights.embedding)) {  // tied: held once
    head = {embedding, {}, {}, weights.head.matrix};
    head.matrix.data = embedding.const_data_ptr();
  } else {
    head = linear({&weights.head}, device);
  }
}

}  // namespace dlf::cuda
