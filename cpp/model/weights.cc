#include "model/weights.h"

#include <c10/util/Exception.h>

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

namespace {

const at::Tensor& find(const TensorMap& tensors, const std::string& name) {
  const auto found = tensors.find(name);
  TORCH_CHECK_VALUE(found != tensors.end(), "tensor ", name, " is missing");
  return found->second;
}

}  // namespace

Weights::Weights(ModelConfig config, const TensorMap& tensors) : config_(std::move(config)) {
  const int64_t hidden = config_.hidden_size;
  const int64_t q_size = config_.num_attention_heads * config_.head_dim;
  const int64_t kv_size = config_.num_key_value_heads * config_.head_dim;
  TORCH_CHECK_VALUE(config_.head_dim % 2 == 0 && config_.head_dim <= 512, "head_dim is ", config_.head_dim,
                    "; it must be even and at most 512");
  TORCH_CHECK_VALUE(config_.num_key_value_heads > 0 && config_.num_attention_heads % config_.num_key_value_heads == 0,
                    "num_attention_heads (", config_.num_attention_heads, ") is no multiple of num_key_value_heads (",
                    config_.num_key_value_heads, ")");
  TORCH_CHECK_VALUE(static_cast<int64_t>(config_.sliding_windows.size()) == config_.num_hidden_layers,
                    "sliding_windows must have one entry for each of the ", config_.num_hidden_layers, " layers");
  TORCH_CHECK_VALUE(static_cast<int64_t>(config_.inv_freq.size()) == config_.head_dim / 2,
                    "inv_freq must have head_dim / 2 = ", config_.head_dim / 2, " entries");

  const at::ScalarType first = find(tensors, "model.embed_tokens.weight").scalar_type();
  TORCH_CHECK_VALUE(first == at::kFloat || first == at::kBFloat16 || first == at::kHalf,
                    "weights must be float32, bfloat16 or float16, not ", first);
  dtype_ = first == at::kFloat ? DType::float32 : first == at::kBFloat16 ? DType::bfloat16 : DType::float16;

  embedding = take(tensors, "model.embed_tokens.weight", {config_.vocab_size, hidden});
  for (int64_t i = 0; i < config_.num_hidden_layers; ++i) {
    const std::string layer = "model.layers." + std::to_string(i) + ".";
    const std::string attention = layer + "self_attn.";
    LayerWeights& w = layers.emplace_back();
    w.input_norm = vector(tensors, layer + "input_layernorm.weight", hidden);
    w.q = linear(tensors, attention + "q_proj", q_size, hidden);
    w.k = linear(tensors, attention + "k_proj", kv_size, hidden);
    w.v = linear(tensors, attention + "v_proj", kv_size, hidden);
    w.o = linear(tensors, attention + "o_proj", hidden, q_size);
    w.q_norm = vector(tensors, attention + "q_norm.weight", config_.head_dim, /*optional=*/true);
    w.k_norm = vector(tensors, attention + "k_norm.weight", config_.head_dim, /*optional=*/true);
    w.post_attention_norm = vector(tensors, layer + "post_attention_layernorm.weight", hidden);
    w.gate = linear(tensors, layer + "mlp.gate_proj", config_.intermediate_size, hidden);
    w.up = linear(tensors, layer + "mlp.up_proj", config_.intermediate_size, hidden);
    w.down = linear(tensors, layer + "mlp.down_proj", hidden, config_.intermediate_size);
  }
  norm = vector(tensors, "model.norm.weight", hidden);
  const auto head = tensors.find("lm_head.weight");
  if (head != tensors.end() && !head->second.is_same(embedding)) {  // else tied: counted once
    lm_head = linear(tensors, "lm_head", config_.vocab_size, hidden);
  } else {
    lm_head = {
        embedding, {}, {}, {embedding.const_data_ptr(), nullptr, config_.vocab_size, hidden, float_type(dtype_), 0}};
  }
  for (const LayerWeights& w : layers) {
    for (const LinearWeights* one : {&w.q, &w.k, &w.v, &w.o, &w.gate, &w.up, &w.down}) {
      TORCH_CHECK_VALUE(one->matrix.type == type(),
                        "the linear layers are stored in different types; load all with one");
    }
  }
}

at::Tensor Weights::take(const TensorMap& tensors, const std::string& name, at::IntArrayRef shape) {
  const at::Tensor& tensor = find(tensors, name);
  TORCH_CHECK_VALUE(tensor.sizes() == shape, "tensor ", name, " has shape ", tensor.sizes(), "; the config asks for ",
                    shape);
  const at::ScalarType type = scalar_type(dtype_);
  TORCH_CHECK_VALUE(tensor.scalar_type() == type, "tensor ", name, " is ", tensor.scalar_type(), ", the embedding is ",
                    type, "; load all with one dtype");
  TORCH_CHECK_VALUE(tensor.is_contiguous(), "tensor ", name, " must be contiguous");
  bytes_ += static_cast<int64_t>(tensor.nbytes());
  return tensor;
}

at::Tensor Weights::vector(const TensorMap& tensors, const std::string& name, int64_t size, bool optional) {
  if (optional && !tensors.contains(name)) {
    return {};
  }
  return take(tensors, name, {size}).to(at::kFloat);
}

LinearWeights Weights::linear(const TensorMap& tensors, const std::string& name, int64_t out, int64_t in) {
  const std::string weight = name + ".weight";
  const std::string scale = name + ".weight_scale";
  const at::Tensor bias = vector(tensors, name + ".bias", out, /*optional=*/true);
  const auto scales = tensors.find(scale);
  if (scales == tensors.end()) {
    const at::Tensor data = take(tensors, weight, {out, in});
    return {data, {}, bias, {data.const_data_ptr(), nullptr, out, in, float_type(dtype_), 0}};
  }
  constexpr int64_t kLanes = ops::kTileOutputs;
  const int64_t tiles = ops::tiles(out);
  LinearWeights linear = {{}, {}, bias, {nullptr, nullptr, out, in, ops::MatrixType::int8, 0}};
  if (scales->second.dim() == 2) {  // one for each channel
    const int64_t padded = ops::padded_inputs(in, 0);
    linear.weight = take_tiles(tensors, weight, at::kChar, {tiles, padded / 4, kLanes, 4});
    linear.scale = take_tiles(tensors, scale, at::kFloat, {tiles, kLanes});
  } else {
    // Eight registers of weights to a scale, or four.
    const at::Tensor& given = find(tensors, weight);
    const bool wide = given.dim() == 4 && scales->second.dim() == 3 && given.size(1) == scales->second.size(1) * 8;
    const int64_t group = wide ? 64 : 32;
    const int64_t padded = ops::padded_inputs(in, group);
    linear.weight = take_tiles(tensors, weight, at::kByte, {tiles, padded / 8, kLanes, 4});
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
