#include "model/cuda/weights.h"

#include <ATen/ops/from_blob.h>
#include <ATen/ops/zeros.h>

#include <cstddef>
#include <span>
#include <vector>

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

// Joins layers that are stored alike. `rows`: each begins at a multiple of so many outputs.
DeviceLinear join(std::span<const LinearWeights* const> parts, int64_t rows, int device) {
  DeviceLinear joined;
  joined.matrix = parts[0]->matrix;
  const bool tiled = ops::is_quantized(joined.matrix.type);
  bool biased = false;
  int64_t out = 0;
  std::vector<at::Tensor> biases;
  for (const LinearWeights* part : parts) {
    out += ops::round_up(part->matrix.out, rows);
    biased = biased || part->bias.defined();
    biases.push_back(part->bias.defined() ? part->bias : at::zeros({part->matrix.out}, at::kFloat));
  }
  for (const ops::TilePart& tile_part : ops::kTileParts) {
    if ((parts[0]->tensors.*tile_part.tensor).defined()) {
      std::vector<at::Tensor> tensors;
      for (const LinearWeights* part : parts) {
        tensors.push_back(part->tensors.*tile_part.tensor);
      }
      joined.tensors.*tile_part.tensor = stack(tensors, tiled ? 1 : rows, device);  // tiles are already whole
    }
  }
  joined.bias = biased ? stack(biases, rows, device) : at::Tensor();
  joined.matrix.out = out;
  joined.matrix.data = joined.tensors.data.const_data_ptr();
  if (tiled) {
    joined.matrix = ops::matrix_of(joined.tensors, out, joined.matrix.in, "on the device");
  }
  return joined;
}

std::vector<DeviceLinear> linear(const std::vector<const LinearWeights*>& layers, int device) {
  const int64_t rows = layers.size() > 1 ? ops::kTileOutputs : 1;
  std::vector<DeviceLinear> joined;
  int64_t first = 0;
  for (std::span<const LinearWeights* const> rest(layers); !rest.empty();) {
    size_t count = 1;
    while (count < rest.size() && ops::stored_alike(rest[0]->matrix, rest[count]->matrix)) {
      ++count;
    }
    joined.push_back(join(rest.first(count), rows, device));
    joined.back().first = first;
    first += joined.back().matrix.out;
    rest = rest.subspan(count);
  }
  return joined;
}

DeviceExperts experts(const LayerWeights& layer, int device) {
  std::vector<ops::Expert> matrices = layer.expert_matrices;
  const auto put = [&](LinearWeights ExpertWeights::* member, ops::Matrix ops::Expert::* matrix) {
    std::vector<const LinearWeights*> parts;
    parts.reserve(layer.experts.size());
    for (const ExpertWeights& expert : layer.experts) {
      parts.push_back(&(expert.*member));
    }
    DeviceLinear stacked = join(parts, parts.size() > 1 ? ops::kTileOutputs : 1, device);
    const auto count = static_cast<int64_t>(parts.size());
    for (int64_t e = 0; e < count; ++e) {
      ops::Tiles tensors;
      for (const ops::TilePart& part : ops::kTileParts) {
        const at::Tensor& all = stacked.tensors.*part.tensor;
        tensors.*part.tensor = all.defined() ? all.narrow(0, all.size(0) / count * e, all.size(0) / count) : all;
      }
      ops::Matrix& own = matrices[e].*matrix;
      own = ops::is_quantized(own.type) ? ops::matrix_of(tensors, own.out, own.in, "on the device") : own;
      own.data = tensors.data.const_data_ptr();
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
    : embedding(linear({&weights.embedding}, device).front()),
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
    if (layer.up.tensors.data.defined()) {
      to.gate_up = gated ? linear({&layer.gate, &layer.up}, device) : linear({&layer.up}, device);
      to.down = linear({&layer.down}, device);
    }
    if (!layer.experts.empty()) {
      to.router = linear({&layer.router}, device);
      to.experts = experts(layer, device);
    }
    if (layer.shared_router.tensors.data.defined()) {
      to.shared_router = linear({&layer.shared_router}, device);
    }
    to.feed_forward_post_norm = to_device(layer.feed_forward_post_norm, device);
  }
  if (weights.head.tensors.data.is_same(weights.embedding.tensors.data)) {  // tied: held once
    head = {embedding};
    head[0].bias = to_device(weights.head.bias, device);
  } else {
    head = linear({&weights.head}, device);
  }
}

std::shared_ptr<const DeviceWeights> DeviceWeights::of(const Weights& weights, Queue& queue) {
  return weights.device_copies().get(queue.device(), [&] {
    std::shared_ptr<const DeviceWeights> made;
    queue.run([&] { made = std::make_shared<const DeviceWeights>(weights, queue.device()); });
    queue.synchronize();  // another decoder may read them on a queue of its own
    return made;
  });
}

}  // namespace dlf::cuda
