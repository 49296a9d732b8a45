#include "model/weights.h"

#include <ATen/ops/add.h>
#include <c10/util/BFloat16.h>
#include <c10/util/Exception.h>
#include <c10/util/Half.h>

#include "model/slots.h"
#include "support/scalar_type.h"

namespace dlf {

ops::MatrixType float_type(DType dtype) {
  switch (dtype) {
    case DType::float32:
      return ops::MatrixType::float32;
    case DType::bfloat16:
      return ops::MatrixType::bfloat16;
    default:
      return ops::MatrixType::float16;
  }
}

float rounded(double value, DType dtype) {
  const auto single = static_cast<float>(value);
  switch (dtype) {
    case DType::float32:
      return single;
    case DType::bfloat16:
      return c10::BFloat16(single);
    default:
      return c10::Half(single);
  }
}

namespace {

const at::Tensor& find(const TensorMap& tensors, const std::string& name) {
  const auto found = tensors.find(name);
  TORCH_CHECK_VALUE(found != tensors.end(), "tensor ", name, " is missing");
  return found->second;
}

}  // namespace

Weights::Weights(ModelSpec spec, const TensorMap& tensors) : spec_(std::move(spec)) {
  check(spec_);
  const at::ScalarType first = find(tensors, "embedding").scalar_type();
  TORCH_CHECK_VALUE(first == at::kFloat || first == at::kBFloat16 || first == at::kHalf,
                    "weights must be float32, bfloat16 or float16, not ", first);
  dtype_ = first == at::kFloat ? DType::float32 : first == at::kBFloat16 ? DType::bfloat16 : DType::float16;

  embedding = take(tensors, "embedding", {spec_.vocab_size, spec_.hidden_size});
  if (spec_.learned_positions > 0) {
    positions = take(tensors, "positions", {spec_.learned_positions, spec_.hidden_size});
  }
  for (int64_t i = 0; i < spec_.layer_count(); ++i) {
    LayerWeights& layer = layers.emplace_back();
    for (const NormSlot& slot : norm_slots(spec_)) {
      layer.*slot.weights = norm_of(tensors, slot_of(i, slot.name), slot.size, slot.bias);
    }
    for (const LinearSlot& slot : linear_slots(spec_, i)) {
      layer.*slot.weights = linear(tensors, slot_of(i, slot.name), slot.out, slot.in, slot.bias);
    }
    if (spec_.layers[i].experts) {
      layer.router = linear(tensors, slot_of(i, "router"), spec_.experts.count, spec_.hidden_size, /*bias=*/false);
      TORCH_CHECK_VALUE(!ops::is_quantized(layer.router.matrix.type), "the router of layer ", i, " is quantized");
    }
    for (int64_t e = 0; spec_.layers[i].experts && e < spec_.experts.count; ++e) {
      ExpertWeights& expert = layer.experts.emplace_back();
      for (const ExpertSlot& slot : expert_slots(spec_)) {
        expert.*slot.weights = linear(tensors, slot_of(i, e, slot.name), slot.out, slot.in, /*bias=*/false);
      }
      layer.expert_matrices.push_back({expert.gate.matrix, expert.up.matrix, expert.down.matrix});
    }
  }
  norm = norm_of(tensors, "norm", spec_.hidden_size, spec_.norm.bias);
  const auto own = tensors.find("head");
  if (own != tensors.end() && !own->second.is_same(embedding)) {  // else tied: counted once
    head = linear(tensors, "head", spec_.vocab_size, spec_.hidden_size, /*bias=*/false);
  } else {
    head = {embedding,
            {},
            {},
            {embedding.const_data_ptr(), nullptr, spec_.vocab_size, spec_.hidden_size, float_type(dtype_), 0}};
  }
  const auto check_type = [&](const LinearWeights& linear) {
    TORCH_CHECK_VALUE(linear.matrix.type == type(),
                      "the linear layers are stored in different types; load all with one");
  };
  for (int64_t i = 0; i < spec_.layer_count(); ++i) {
    for (const LinearSlot& slot : linear_slots(spec_, i)) {
      check_type(layers[i].*slot.weights);
    }
    for (const ExpertWeights& expert : layers[i].experts) {
      for (const ExpertSlot& slot : expert_slots(spec_)) {
        check_type(expert.*slot.weights);
      }
    }
  }
}

at::Tensor Weights::take(const TensorMap& tensors, const std::string& name, at::IntArrayRef shape) {
  const at::Tensor& tensor = find(tensors, name);
  TORCH_CHECK_VALUE(tensor.sizes() == shape, "tensor ", name, " has shape ", tensor.sizes(), "; the model takes ",
                    shape);
  const at::ScalarType type = scalar_type(dtype_);
  TORCH_CHECK_VALUE(tensor.scalar_type() == type, "tensor ", name, " is ", tensor.scalar_type(), ", the embedding is ",
                    type, "; load all with one dtype");
  TORCH_CHECK_VALUE(tensor.is_contiguous(), "tensor ", name, " must be contiguous");
  bytes_ += static_cast<int64_t>(tensor.nbytes());
  return tensor;
}

at::Tensor Weights::vector(const TensorMap& tensors, const std::string& name, int64_t size) {
  return take(tensors, name, {size}).to(at::kFloat);
}

NormWeights Weights::norm_of(const TensorMap& tensors, const std::string& name, int64_t size, bool bias) {
  NormWeights norm = {vector(tensors, name, size), bias ? vector(tensors, name + ".bias", size) : at::Tensor()};
  if (spec_.norm.offset) {
    norm.weight = at::add(norm.weight, 1.0);
  }
  return norm;
}

LinearWeights Weights::linear(const TensorMap& tensors, const std::string& name, int64_t out, int64_t in,
                              bool has_bias) {
  const std::string scale = name + ".scale";
  const at::Tensor bias = has_bias ? vector(tensors, name + ".bias", out) : at::Tensor();
  const auto scales = tensors.find(scale);
  if (scales == tensors.end()) {
    const at::Tensor data = take(tensors, name, {out, in});
    return {data, {}, bias, {data.const_data_ptr(), nullptr, out, in, float_type(dtype_), 0}};
  }
  constexpr int64_t kLanes = ops::kTileOutputs;
  const int64_t tiles = ops::tiles(out);
  LinearWeights linear = {{}, {}, bias, {nullptr, nullptr, out, in, ops::MatrixType::int8, 0}};
  if (scales->second.dim() == 2) {  // one for each channel
    const int64_t padded = ops::padded_inputs(in, 0);
    linear.weight = take_tiles(tensors, name, at::kChar, {tiles, padded / 4, kLanes, 4});
    linear.scale = take_tiles(tensors, scale, at::kFloat, {tiles, kLanes});
  } else {
    // A scale is for eight registers of weights, or for four.
    const at::Tensor& given = find(tensors, name);
    const bool wide = given.dim() == 4 && scales->second.dim() == 3 && given.size(1) == scales->second.size(1) * 8;
    const int64_t group = wide ? 64 : 32;
    const int64_t padded = ops::padded_inputs(in, group);
    linear.weight = take_tiles(tensors, name, at::kByte, {tiles, padded / 8, kLanes, 4});
    linear.scale = take_tiles(tensors, scale, at::kBFloat16, {tiles, padded / group, kLanes});
    linear.matrix.type = ops::MatrixType::int4;
    linear.matrix.group = group;
  }
  linear.matrix.data = linear.weight.const_data_ptr();
  linear.matrix.scale = linear.scale.const_data_ptr();
  return linear;
}

at::Tensor Weights::take_tiles(const TensorMap& tensors, const std::string& name, at::ScalarType type,
                               at::IntArrayRef shape) {
  const at::Tensor& tensor = find(tensors, name);
  TORCH_CHECK_VALUE(tensor.scalar_type() == type && tensor.sizes() == shape && tensor.is_contiguous(), "tensor ", name,
                    " is ", tensor.scalar_type(), " ", tensor.sizes(), "; tiles of this layer are ", type, " ", shape);
  bytes_ += static_cast<int64_t>(tensor.nbytes());
  return tensor;
}

}  // namespace dlf
