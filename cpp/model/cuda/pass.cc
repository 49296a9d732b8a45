#include "model/cuda/pass.h"

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <utility>
#include <vector>

#include "model/cuda/prompt_attention.h"
#include "ops/cuda/activation.h"
#include "ops/cuda/attention.h"
#include "ops/cuda/bias.h"
#include "ops/cuda/cache_blocks.h"
#include "ops/cuda/experts.h"
#include "ops/cuda/logits.h"
#include "ops/cuda/norm.h"
#include "ops/cuda/own_logits.h"
#include "ops/cuda/rope.h"
#include "ops/cuda/router.h"

namespace dlf::cuda {
namespace {

const float* data(const at::Tensor& tensor) { return tensor.defined() ? tensor.const_data_ptr<float>() : nullptr; }

// Address of column `offset` in the first row.
void* column(const at::Tensor& tensor, int64_t offset) {
  return static_cast<std::byte*>(tensor.mutable_data_ptr()) + offset * tensor.element_size();
}

}  // namespace

DecoderShard::Pass DecoderShard::Pass::decode(DecoderShard& decoder, int first, int rows, int slots) {
  return {decoder, {rows, decoder.positions_.const_data_ptr<int32_t>() + first, 0, nullptr, 0, slots}, -1, false};
}

DecoderShard::Pass DecoderShard::Pass::prompt(DecoderShard& decoder, int row, int start, int count) {
  return {decoder, ops::prompt_places(count, start, row), row, true};
}

DecoderShard::Pass DecoderShard::Pass::again(DecoderShard& decoder, int row, int start, int count) {
  return {decoder, ops::prompt_places(count, start, row), row, false};
}

void DecoderShard::Pass::embed(const int32_t* tokens, int lanes) { embed(tokens, lanes, d_.hidden_); }

void DecoderShard::Pass::embed(const int32_t* tokens, int lanes, at::Tensor& y) {
  EmbeddingArgs args = {embedding_args(spec(), d_.weights_->embedding.matrix, d_.weights_->positions, d_.dtype_)};
  args.token = tokens;
  args.y = y.mutable_data_ptr<float>();
  args.rows = rows_;
  args.lanes = lanes;
  args.places = places_;
  args.own = d_.adapters_.own_embedding();
  args.adapted = adapted_lanes();
  cuda::embedding(args, d_.queue_.stream());
  adapt_embedding(args, y);
}

// NOLINTNEXTLINE(performance-unnecessary-value-param): a handle, which multiply() writes through.
void DecoderShard::Pass::head(int first, int rows, at::Tensor logits) {
  norm_for_head(first, rows);
  project_logits(first, rows, std::move(logits));
}

void DecoderShard::Pass::norm_for_head(int first, int rows) {
  rows_ = rows;
  norm(d_.weights_->norm, first);
}

// NOLINTNEXTLINE(performance-unnecessary-value-param): a handle, which multiply() writes through.
void DecoderShard::Pass::project_logits(int first, int rows, at::Tensor logits) {
  rows_ = rows;
  const at::Tensor normed = d_.normed_.narrow(0, first, rows);
  if (!reads_one() || !d_.adapters_.replaces_head(adapted_lanes().lane)) {
    multiply(d_.weights_->head, normed, logits);
  }
  adapt_head(normed, logits);
  if (!are_final(spec())) {
    finish_logits(logit_args(spec(), logits.mutable_data_ptr<float>(), rows), d_.queue_.stream());
  }
}

AttentionBuffers DecoderShard::Pass::buffers(int64_t index) {
  const RopeTable& rope = d_.ropes_[spec().layers[index].rope];
  const auto stride = static_cast<int>(d_.qkv_.size(1));
  return {column(d_.qkv_, 0),
          column(d_.qkv_, d_.k_offset_),
          column(d_.qkv_, d_.v_offset_),
          stride,
          stride,
          d_.attended_.mutable_data_ptr(),
          d_.keys_.select(0, index).mutable_data_ptr(),
          d_.values_.select(0, index).mutable_data_ptr(),
          {d_.table_.const_data_ptr<int32_t>(), d_.table_.size(1)},
          places_,
          data(rope.cos),
          data(rope.sin),
          data(rope.query_scale),
          rope.rotated,
          norm_of(spec(), layer(index).q_norm),
          norm_of(spec(), layer(index).k_norm),
          d_.dtype_};
}

void DecoderShard::Pass::norm(const NormWeights& weights, int first) {
  at::Tensor hidden = d_.hidden_.narrow(0, first, rows_);
  at::Tensor normed = d_.normed_.narrow(0, first, rows_);
  const at::Tensor branch = d_.branch_.narrow(0, first, rows_);
  cuda::norm({hidden.mutable_data_ptr<float>(), branched_ ? branch.const_data_ptr() : nullptr,
              normed.mutable_data_ptr(), rows_, static_cast<int>(spec().hidden_size), norm_of(spec(), weights),
              d_.dtype_, static_cast<float>(spec().residual_multiplier)},
             d_.queue_.stream());
  branched_ = false;
}

// Frees the buffer of branches.
void DecoderShard::Pass::begin_branch() {
  if (branched_) {
    add_branch({});
  }
}

void DecoderShard::Pass::end_branch(const NormWeights& post_norm) {
  branched_ = true;
  if (post_norm.defined()) {
    add_branch(post_norm);
  }
}

void DecoderShard::Pass::add_branch(const NormWeights& norm) {
  cuda::add_norm(
      {d_.hidden_.mutable_data_ptr<float>(), d_.branch_.const_data_ptr(), rows_, static_cast<int>(spec().hidden_size),
       norm_of(spec(), norm), static_cast<float>(spec().residual_multiplier), d_.dtype_},
      d_.queue_.stream());
  branched_ = false;
}

void DecoderShard::Pass::project_heads(int64_t index) {
  multiply(layer(index).qkv, d_.normed_, d_.qkv_);
  adapt(index, DeviceAdapters::attention, d_.qkv_);
}

void DecoderShard::Pass::rope_and_cache(int64_t index) {
  cuda::rope_and_cache(rope_args(spec(), buffers(index)), d_.queue_.stream());
}

void DecoderShard::Pass::attend(int64_t index) {
  const ops::AttentionArgs args = attention_args(spec(), index, buffers(index));
  if (is_prompt_) {
    return attend_prompt(args);
  }
  const int splits = attention_splits(rows_, args.kv_heads, static_cast<int>(d_.shape_.max_context),
                                      d_.device_.multiprocessors, d_.device_.compute_capability);
  cuda::attention(args, splits, d_.queue_.stream());
}

void DecoderShard::Pass::attend_prompt(const ops::AttentionArgs& args) {
  const AttentionSpec& attention = spec().attention;
  const std::vector<int64_t> heads = {rows_, attention.heads, attention.head_dim};
  const at::Tensor q = d_.qkv_.narrow(0, 0, rows_).narrow(1, 0, attention.q_size()).view(heads);
  const at::Tensor y = d_.attended_.narrow(0, 0, rows_).view(heads);
  const int end = places_.start + rows_;
  const auto seen = [&](const void* side, const at::Tensor& together) {
    const auto head_bytes = static_cast<int>(attention.head_dim * together.element_size());
    gather_cache({side, together.mutable_data_ptr(), args.table, static_cast<int>(attention.kv_heads), head_bytes,
                  places_.first_slot, end, together.size(1)},
                 d_.queue_.stream());
    return together.narrow(1, 0, end);
  };
  const at::Tensor keys = seen(args.k_cache, d_.prompt_keys_);
  const at::Tensor values = seen(args.v_cache, d_.prompt_values_);
  const double scale = 1.0 / std::sqrt(attention.query_scalar);  // args.scale, unrounded
  d_.queue_.enqueue([=, window = args.window, softcap = attention.softcap] {
    cuda::attend_prompt(q, keys, values, window, scale, softcap, y);
  });
}

void DecoderShard::Pass::add_attention(int64_t index) {
  project_attention(index, d_.branch_);
  end_attention(index);
}

void DecoderShard::Pass::project_attention(int64_t index, at::Tensor& y) {
  begin_branch();
  multiply(layer(index).o, d_.attended_, y);
  adapt(index, DeviceAdapters::output, y);
}

// Runs as one kernel if it can.
void DecoderShard::Pass::gate(int64_t index) {
  const std::vector<DeviceLinear>& gate_up = layer(index).gate_up;
  const FeedForwardSpec& feed_forward = spec().feed_forward;
  const auto size = static_cast<int>(spec().dense_size());
  const float* row_gate = layer(index).shared_router.empty() ? nullptr : data(d_.experts_.shared);
  LinearArgs args = linear_args(gate_up[0], d_.normed_, d_.activated_);
  if (d_.adapters_.updates(index, DeviceAdapters::mlp) == nullptr && feed_forward.gated && row_gate == nullptr &&
      gate_up.size() == 1 && linear_serves(args) && linear_gates(args)) {
    args.activation = feed_forward.activation;
    args.gated = size;
    args.up_offset = static_cast<int>(d_.up_offset_);
    return cuda::linear(args, d_.queue_.stream());
  }
  multiply(gate_up, d_.normed_, d_.gate_up_);
  adapt(index, DeviceAdapters::mlp, d_.gate_up_);
  cuda::activate({feed_forward.gated ? column(d_.gate_up_, 0) : nullptr, column(d_.gate_up_, d_.up_offset_),
                  static_cast<int>(d_.gate_up_.size(1)), d_.activated_.mutable_data_ptr(), rows_, size, d_.dtype_,
                  feed_forward.activation, row_gate},
                 d_.queue_.stream());
}

void DecoderShard::Pass::add_feed_forward(int64_t index) {
  project_feed_forward(index, d_.branch_);
  end_feed_forward(index);
}

void DecoderShard::Pass::project_feed_forward(int64_t index, at::Tensor& y) {
  begin_branch();
  multiply(layer(index).down, d_.activated_, y);
  adapt(index, DeviceAdapters::down, y);
}

void DecoderShard::Pass::route(int64_t index) {
  const ExpertsSpec& experts = spec().experts;
  multiply(layer(index).router, d_.normed_, d_.experts_.logits);
  multiply(layer(index).shared_router, d_.normed_, d_.experts_.shared);
  adapt(index, DeviceAdapters::router, d_.experts_.logits);
  cuda::router(
      {data(d_.experts_.logits), places_.position, d_.experts_.routes(), rows_, static_cast<int>(experts.count),
       static_cast<int>(experts.chosen), expert_run_pairs(rows_), experts.normalise},
      d_.queue_.stream());
}

void DecoderShard::Pass::add_experts(int64_t index) {
  const ExpertsSpec& experts = spec().experts;
  const DeviceExperts& weights = layer(index).experts;
  ExpertsArgs args = {};
  args.experts = static_cast<const ops::Expert*>(weights.table.const_data_ptr());
  args.like = weights.like;
  args.routes = d_.experts_.routes();
  args.x = d_.normed_.const_data_ptr();
  args.gated = d_.experts_.gated.mutable_data_ptr();
  args.products = d_.experts_.products.mutable_data_ptr<float>();
  args.y = d_.branch_.mutable_data_ptr();
  args.rows = rows_;
  args.chosen = static_cast<int>(experts.chosen);
  args.hidden = static_cast<int>(spec().hidden_size);
  args.inner = static_cast<int>(experts.size);
  args.dtype = d_.dtype_;
  args.activation = spec().feed_forward.activation;
  args.position = places_.position;
  args.most_runs = static_cast<int>(ops::most_runs(rows_, experts.count, experts.chosen, expert_run_pairs(rows_)));
  if (adapts()) {
    args.adapters = {d_.adapters_.experts(index), static_cast<int>(experts.count), adapted_lanes(),
                     d_.expert_inner_.defined() ? d_.expert_inner_.mutable_data_ptr<float>() : nullptr,
                     d_.adapters_.expert_rank()};
  }
  begin_branch();
  cuda::experts(args, d_.queue_.stream());
  end_branch(layer(index).feed_forward_post_norm);
}

// Adds the updates of the lanes' adapters to the products of one input, which are in y.
void DecoderShard::Pass::adapt(int64_t index, DeviceAdapters::Input input, at::Tensor& y) {
  const ops::LoraUpdate* updates = d_.adapters_.updates(index, input);
  if (updates == nullptr || !adapts()) {
    return;
  }
  const bool is_attention = input == DeviceAdapters::attention;
  const at::Tensor& x = input == DeviceAdapters::output ? d_.attended_
                        : input == DeviceAdapters::down ? d_.activated_
                                                        : d_.normed_;
  LoraArgs args = lora_args(updates, y);
  args.products = d_.adapters_.products(input);
  args.x = x.const_data_ptr();
  args.in = args.x_stride = static_cast<int>(x.size(1));
  args.offset[1] = static_cast<int>(is_attention ? d_.k_offset_ : d_.up_offset_);
  args.offset[2] = static_cast<int>(d_.v_offset_);
  cuda::lora(args, d_.queue_.stream());
}

// Arguments of one product, but for x.
LoraArgs DecoderShard::Pass::lora_args(const ops::LoraUpdate* updates, at::Tensor& y) const {
  LoraArgs args = {};
  args.updates = updates;
  args.products = 1;
  args.y = y.mutable_data_ptr();
  args.y_stride = static_cast<int>(y.size(1));
  args.y_float = y.scalar_type() == at::kFloat;
  args.adapted = adapted_lanes();
  args.position = places_.position;
  args.rows = rows_;
  args.max_rank = d_.adapters_.max_rank();
  args.multiplier = 1;
  args.dtype = d_.dtype_;
  return args;
}

void DecoderShard::Pass::adapt_embedding(const EmbeddingArgs& embedding, at::Tensor& y) {
  if (const ops::LoraUpdate* updates = d_.adapters_.embedding(); updates != nullptr && adapts()) {
    LoraArgs args = lora_args(updates, y);
    args.token = embedding.token;
    args.token_lanes = embedding.lanes;
    args.multiplier = embedding.multiplier;
    cuda::lora(args, d_.queue_.stream());
  }
}

void DecoderShard::Pass::adapt_head(const at::Tensor& x, at::Tensor& logits) {
  const auto hidden = static_cast<int>(x.size(1));
  if (const ops::LoraUpdate* updates = d_.adapters_.head(); updates != nullptr && adapts()) {
    LoraArgs args = lora_args(updates, logits);
    args.x = x.const_data_ptr();
    args.in = args.x_stride = hidden;
    cuda::lora(args, d_.queue_.stream());
  }
  if (const ops::OwnLogits* own = d_.adapters_.own_logits(); own != nullptr && adapts()) {
    cuda::own_logits({own, d_.adapters_.most_own_logits(), x.const_data_ptr(), hidden, logits.mutable_data_ptr<float>(),
                      static_cast<int>(spec().vocab_size), adapted_lanes(), places_.position, rows_, d_.dtype_},
                     d_.queue_.stream());
  }
}

// Weights for the matrix library; for quantized ones, where dequantize() puts them.
at::Tensor DecoderShard::Pass::library_weight(const DeviceLinear& linear) const {
  const ops::Matrix& matrix = linear.matrix;
  return ops::is_quantized(matrix.type)
             ? d_.dequantized_.narrow(0, 0, matrix.out * matrix.in).view({matrix.out, matrix.in})
             : linear.tensors.data;
}

LinearArgs DecoderShard::Pass::linear_args(const DeviceLinear& linear, const at::Tensor& x, at::Tensor& y) const {
  LinearArgs args = {};
  args.weight = linear.matrix;
  args.bias = data(linear.bias);
  args.y = column(y, linear.first);
  args.rows = rows_;
  args.x = x.const_data_ptr();
  args.y_stride = static_cast<int>(y.size(1));
  args.y_float = y.scalar_type() == at::kFloat;
  args.position = places_.position;
  args.dtype = d_.dtype_;
  return args;
}

void DecoderShard::Pass::multiply(const std::vector<DeviceLinear>& linears, const at::Tensor& x, at::Tensor& y) {
  for (const DeviceLinear& linear : linears) {
    multiply(linear, x, y);
  }
}

// Computes y = x W^T + bias for the first rows of x: by our own kernel if they are few, else by the matrix library.
void DecoderShard::Pass::multiply(const DeviceLinear& linear, const at::Tensor& x, at::Tensor& y) {
  const LinearArgs args = linear_args(linear, x, y);
  if (linear_serves(args)) {
    return cuda::linear(args, d_.queue_.stream());
  }
  if (ops::is_quantized(linear.matrix.type)) {
    cuda::dequantize(linear.matrix, d_.dequantized_.mutable_data_ptr(), d_.dtype_, d_.queue_.stream());
  }
  const int64_t rows = std::min<int64_t>({padded_rows(rows_), x.size(0), y.size(0)});
  at::Tensor out = y.narrow(0, 0, rows).narrow(1, linear.first, linear.matrix.out);
  matmul(x.narrow(0, 0, rows), library_weight(linear), out);
  if (linear.bias.defined()) {
    add_bias({args.y, args.bias, rows_, static_cast<int>(linear.matrix.out), args.y_stride,
              args.y_float ? DType::float32 : d_.dtype_},
             d_.queue_.stream());
  }
}

void DecoderShard::Pass::multiply_once(int rows, at::Tensor& output) {
  const auto multiply = [&](const std::vector<DeviceLinear>& linears, const at::Tensor& x, at::Tensor& y) {
    for (const DeviceLinear& linear : linears) {
      at::Tensor out = y.narrow(0, 0, rows).narrow(1, linear.first, linear.matrix.out);
      matmul(x.narrow(0, 0, rows), library_weight(linear), out);
    }
  };
  // The first layer that has some linear layers.
  const auto first = [&](std::vector<DeviceLinear> DeviceLayer::* linears) {
    const auto& layers = d_.weights_->layers;
    const auto found = std::ranges::find_if(layers, [&](const DeviceLayer& one) { return !(one.*linears).empty(); });
    return found == layers.end() ? nullptr : &*found;
  };
  multiply(layer(0).qkv, d_.normed_, d_.qkv_);
  multiply(layer(0).o, d_.attended_, output);
  if (const DeviceLayer* dense = first(&DeviceLayer::gate_up)) {
    multiply(dense->gate_up, d_.normed_, d_.gate_up_);
    multiply(dense->down, d_.activated_, output);
  }
  if (const DeviceLayer* mixed = first(&DeviceLayer::router)) {
    multiply(mixed->router, d_.normed_, d_.experts_.logits);
    multiply(mixed->shared_router, d_.normed_, d_.experts_.shared);
  }
}

void DecoderShard::Pass::attend_once() { attend_prompt(attention_args(spec(), 0, buffers(0))); }

}  // namespace dlf::cuda
