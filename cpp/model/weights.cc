#include "model/weights.h"

#include <ATen/ops/add.h>
#include <c10/util/BFloat16.h>
#include <c10/util/Exception.h>
#include <c10/util/Half.h>

#include <algorithm>
#include <functional>
#include <map>

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
  const at::ScalarType first = find(tensors, "norm").scalar_type();
  TORCH_CHECK_VALUE(first == at::kFloat || first == at::kBFloat16 || first == at::kHalf,
                    "weights must be float32, bfloat16 or float16, not ", first);
  dtype_ = first == at::kFloat ? DType::float32 : first == at::kBFloat16 ? DType::bfloat16 : DType::float16;

  embedding = linear(tensors, "embedding", spec_.vocab_size, spec_.hidden_size, /*bias=*/false);
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
      const auto router = [&](const char* name, int64_t out) {
        LinearWeights found = linear(tensors, slot_of(i, name), out, spec_.hidden_size, /*bias=*/false);
        TORCH_CHECK_VALUE(!ops::is_quantized(found.matrix.type), "the router of layer ", i, " is quantized");
        return found;
      };
      layer.router = router("router", spec_.experts.count);
      if (spec_.experts.shared_router) {
        layer.shared_router = router("shared_router", 1);
      }
    }
    for (int64_t e = 0; spec_.layers[i].experts && e < spec_.experts.count; ++e) {
      ExpertWeights& expert = layer.experts.emplace_back();
      for (const ExpertSlot& slot : expert_slots(spec_)) {
        expert.*slot.weights = linear(tensors, slot_of(i, e, slot.name), slot.out, slot.in, /*bias=*/false);
      }
      layer.expert_matrices.push_back({expert.gate.matrix, expert.up.matrix, expert.down.matrix});
      const ops::Expert& first = layer.expert_matrices[0];
      TORCH_CHECK_VALUE(ops::stored_alike(expert.gate.matrix, first.gate) &&
                            ops::stored_alike(expert.up.matrix, first.gate) &&
                            ops::stored_alike(expert.down.matrix, first.down),
                        "the experts of layer ", i, " are stored in different types; load all with one");
    }
  }
  norm = norm_of(tensors, "norm", spec_.hidden_size, spec_.norm.bias);
  const auto own = tensors.find("head");
  const bool tied = own == tensors.end() || own->second.is_same(embedding.tensors.data);  // and counted once
  head = tied ? embedding : linear(tensors, "head", spec_.vocab_size, spec_.hidden_size, /*bias=*/false);
  if (spec_.head_bias) {
    head.bias = vector(tensors, "head.bias", spec_.vocab_size);
  }
}

std::vector<ops::MatrixType> Weights::types() const {
  std::map<ops::MatrixType, int64_t> bytes = {{head.matrix.type, head.tensors.bytes()}};
  const auto add = [&](const LinearWeights& linear) { bytes[linear.matrix.type] += linear.tensors.bytes(); };
  for (int64_t i = 0; i < spec_.layer_count(); ++i) {
    for (const LinearSlot& slot : linear_slots(spec_, i)) {
      add(layers[i].*slot.weights);
    }
    for (const ExpertWeights& expert : layers[i].experts) {
      for (const ExpertSlot& slot : expert_slots(spec_)) {
        add(expert.*slot.weights);
      }
    }
  }
  std::vector<ops::MatrixType> found;
  found.reserve(bytes.size());
  for (const auto& [type, count] : bytes) {
    found.push_back(type);
  }
  std::ranges::stable_sort(found, std::greater(), [&](ops::MatrixType type) { return bytes[type]; });
  return found;
}

at::Tensor Weights::take(const TensorMap& tensors, const std::string& name, at::IntArrayRef shape) {
  const at::Tensor& tensor = find(tensors, name);
  TORCH_CHECK_VALUE(tensor.sizes() == shape, "tensor ", name, " has shape ", tensor.sizes(), "; the model takes ",
                    shape);
  const at::ScalarType type = scalar_type(dtype_);
  TORCH_CHECK_VALUE(tensor.scalar_type() == type, "tensor ", name, " is ", tensor.scalar_type(), ", the last norm is ",
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
  LinearWeights linear = {{}, has_bias ? vector(tensors, name + ".bias", out) : at::Tensor(), {}};
  if (!tensors.contains(name + ".scale")) {
    linear.tensors.data = take(tensors, name, {out, in});
    linear.matrix = {linear.tensors.data.const_data_ptr(), nullptr, out, in, float_type(dtype_), 0};
    return linear;
  }
  for (const ops::TilePart& part : ops::kTileParts) {
    const auto found = tensors.find(name + part.suffix);
    linear.tensors.*part.tensor = found != tensors.end() ? found->second : at::Tensor();
  }
  TORCH_CHECK_VALUE(linear.tensors.data.defined(), "tensor ", name, " is missing");
  linear.matrix = ops::matrix_of(linear.tensors, out, in, name);
  bytes_ += linear.tensors.bytes();
  quantized_ = true;
  return linear;
}

}  // namespace dlf
