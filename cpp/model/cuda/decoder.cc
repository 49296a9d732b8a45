#include "model/cuda/decoder.h"

#include <ATen/ops/arange.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/full.h>
#include <ATen/ops/gt.h>
#include <ATen/ops/le.h>
#include <ATen/ops/logical_and.h>
#include <ATen/ops/scaled_dot_product_attention.h>
#include <ATen/ops/sub.h>
#include <ATen/ops/zeros.h>
#include <c10/util/Exception.h>

#include <algorithm>
#include <cmath>
#include <tuple>

#include "model/rope_tables.h"
#include "ops/cuda/activation.h"
#include "ops/cuda/attention.h"
#include "ops/cuda/bias.h"
#include "ops/cuda/embedding.h"
#include "ops/cuda/linear.h"
#include "ops/cuda/norm.h"
#include "ops/cuda/rope.h"
#include "support/scalar_type.h"

namespace dlf::cuda {
namespace {

constexpr int64_t kMaxHeadDim = 256;  // of the attention kernel
// Of each decoder's stream: cuBLAS takes 32 MiB on Hopper; the rest is for graphs and for memory in whole pages.
constexpr int64_t kLibraryBytes = 64 << 20;

const float* data(const at::Tensor& tensor) { return tensor.defined() ? tensor.const_data_ptr<float>() : nullptr; }

int most_rows(const DecoderShape& shape) { return std::max(Decoder::kChunkTokens, shape.rows()); }

// Rows that the libraries see for a chunk of `rows` tokens. They choose a kernel by this number and load it at its
// first use, so only a few numbers occur, and ready_libraries() has met all of them.
int padded_rows(int rows) {
  constexpr int kFine = 16;
  constexpr int kCoarse = 64;  // as many as a kernel of theirs takes at once
  return static_cast<int>(ops::round_up(rows, rows <= kCoarse ? kFine : kCoarse));
}

// And of those that have logits: the spare sequence's among them.
int64_t rows_with_logits(const DecoderShape& shape) { return std::max(shape.rows(), shape.slots() + shape.lanes); }

// Outputs of the query, key and value projections, and of gate and up: each begins on a whole tile.
int64_t q_size(const ModelConfig& config) { return config.num_attention_heads * config.head_dim; }
int64_t kv_size(const ModelConfig& config) { return config.num_key_value_heads * config.head_dim; }
int64_t qkv_size(const ModelConfig& config) {
  return padded_outputs(q_size(config)) + 2 * padded_outputs(kv_size(config));
}
int64_t gate_up_size(const ModelConfig& config) { return 2 * padded_outputs(config.intermediate_size); }

// Weights of the largest matrix among those that may have to be dequantized.
int64_t largest_matrix(const ModelConfig& config) {
  return std::max({qkv_size(config) * config.hidden_size, gate_up_size(config) * config.hidden_size,
                   config.hidden_size * config.intermediate_size, config.vocab_size * config.hidden_size});
}

AttentionArgs attention_args(const ModelConfig& config, const DecoderShape& shape, int rows, DType dtype) {
  AttentionArgs args = {};
  args.rows = rows;
  args.heads = static_cast<int>(config.num_attention_heads);
  args.kv_heads = static_cast<int>(config.num_key_value_heads);
  args.head_dim = static_cast<int>(config.head_dim);
  args.capacity = static_cast<int>(shape.max_context);
  args.scale = 1.0F / std::sqrt(static_cast<float>(config.head_dim));
  args.stride = static_cast<int>(qkv_size(config));
  args.dtype = dtype;
  return args;
}

// y = prompt_attention(), with what torch has for any type and size.
void masked_attention(const at::Tensor& q, const at::Tensor& keys, const at::Tensor& values, int64_t window,
                      const at::Tensor& y) {
  const int64_t end = keys.size(1);
  const int64_t start = end - q.size(0);
  c10::optional<at::Tensor> mask;
  const bool causal = start == 0 && (window == 0 || window >= end);
  if (!causal) {
    const auto integers = q.options().dtype(at::kInt);
    const at::Tensor row = at::arange(start, end, integers).unsqueeze(1);
    const at::Tensor column = at::arange(end, integers).unsqueeze(0);
    mask = at::le(column, row);
    if (window > 0) {
      mask = at::logical_and(*mask, at::gt(column, at::sub(row, window)));
    }
  }
  const double scale = 1.0 / std::sqrt(static_cast<double>(q.size(2)));
  y.copy_(at::scaled_dot_product_attention(q.transpose(0, 1).unsqueeze(0), keys.unsqueeze(0), values.unsqueeze(0), mask,
                                           /*dropout_p=*/0.0, causal, scale,
                                           /*enable_gqa=*/q.size(1) != keys.size(0))
              .squeeze(0)
              .transpose(0, 1));
}

}  // namespace

Decoder::Decoder(const Weights& weights, const DecoderShape& shape, Queue& queue,
                 const std::vector<std::shared_ptr<const Adapter>>& adapters, const std::vector<int64_t>& lane_adapter)
    : config_(weights.config()),
      dtype_(weights.dtype()),
      shape_(shape),
      queue_(queue),
      weights_(weights, queue.device()),
      adapters_(adapters, lane_adapter, queue.device()),
      k_offset_(padded_outputs(q_size(config_))),
      v_offset_(k_offset_ + padded_outputs(kv_size(config_))),
      up_offset_(padded_outputs(config_.intermediate_size)),
      device_(devices().at(queue.device())) {
  TORCH_CHECK_VALUE(config_.head_dim <= kMaxHeadDim, "head_dim is ", config_.head_dim, "; on CUDA it can be at most ",
                    kMaxHeadDim);
  const auto floats = on_device(queue.device()).dtype(at::kFloat);
  const auto halves = on_device(queue.device()).dtype(scalar_type(dtype_));
  const auto integers = on_device(queue.device()).dtype(at::kInt);
  const RopeTables rope(config_, shape.max_context);
  cos_ = rope.cos.to(floats);
  sin_ = rope.sin.to(floats);
  cache_ = make_cache(0, shape.slots());
  tokens_ = at::zeros({shape.max_tokens}, integers);
  positions_ = at::full({shape.rows()}, -1, integers);
  const int64_t rows = most_rows(shape);
  hidden_ = at::zeros({rows, config_.hidden_size}, floats);
  normed_ = at::zeros({rows, config_.hidden_size}, halves);
  qkv_ = at::zeros({rows, qkv_size(config_)}, halves);
  attended_ = at::zeros({rows, q_size(config_)}, halves);
  branch_ = at::zeros({rows, config_.hidden_size}, halves);
  gate_up_ = at::zeros({rows, gate_up_size(config_)}, halves);
  activated_ = at::zeros({rows, config_.intermediate_size}, halves);
  logits_ = at::zeros({rows_with_logits(shape), config_.vocab_size}, floats);
  if (ops::is_quantized(weights.type())) {
    dequantized_ = at::empty({largest_matrix(config_)}, halves);
  }
  ready_libraries();
}

// Calls the libraries with the shapes that prompts will have, so that no request waits while they load kernels, make
// handles or take memory. What they compute here is nothing.
void Decoder::ready_libraries() {
  const auto capacity = static_cast<int>(shape_.max_context);
  const DeviceLayer& layer = weights_.layers.at(0);
  queue_.run([&] {
    for (int rows = padded_rows(1); rows <= kChunkTokens; rows = padded_rows(rows + 1)) {
      for (const auto& [linear, x, y] :
           {std::tuple(&layer.qkv, &normed_, &qkv_), std::tuple(&layer.o, &attended_, &branch_),
            std::tuple(&layer.gate_up, &normed_, &gate_up_), std::tuple(&layer.down, &activated_, &branch_)}) {
        at::Tensor out = y->narrow(0, 0, rows).narrow(1, 0, linear->matrix.out);
        matmul(x->narrow(0, 0, rows), library_weight(*linear), out);
      }
      const int count = std::min(rows, capacity);
      for (int end = count; end < capacity; end = std::min(2 * end, capacity)) {
        attend_prompt({count, true, 0, end - count}, 0);
      }
      attend_prompt({count, true, 0, capacity - count}, 0);
    }
  });
}

DecoderBytes Decoder::bytes(const ModelSize& model, const DecoderShape& shape) {
  const ModelConfig& config = model.config;
  const auto element = static_cast<int64_t>(c10::elementSize(scalar_type(model.dtype)));
  const int64_t row = config.hidden_size * (4 + 2 * element) +
                      (qkv_size(config) + q_size(config) + gate_up_size(config) + config.intermediate_size) * element;
  const int64_t rope = shape.max_context * config.head_dim * 4;
  DecoderBytes bytes = {};
  bytes.weights = model.weights;
  bytes.kv_cache = 2 * config.num_hidden_layers * shape.slots() * kv_size(config) * shape.max_context * element;
  bytes.activations = most_rows(shape) * row + rope + (shape.max_tokens + shape.rows()) * 4;
  bytes.logits = rows_with_logits(shape) * config.vocab_size * 4;
  bytes.workspace = kLibraryBytes + (model.quantized ? largest_matrix(config) * element : 0);
  if (model.dtype == DType::float32) {  // masked_attention() holds the scores of a chunk before and after the softmax
    bytes.workspace += 2 * config.num_attention_heads * kChunkTokens * shape.max_context * 4;
  }
  return bytes;
}

void Decoder::decode(int batch, int first, int count) {
  const int slots = batch * shape_.lanes;
  const Batch rows = {count * slots, false, -1, 0, first * slots, slots};
  TORCH_INTERNAL_ASSERT(rows.first + rows.rows <= shape_.rows());
  queue_.run([&] {
    cuda::embedding(
        {weights_.embedding.const_data_ptr(), tokens_.const_data_ptr<int32_t>() + first * batch,
         hidden_.mutable_data_ptr<float>(), rows.rows, shape_.lanes, static_cast<int>(config_.hidden_size), dtype_},
        queue_.stream());
    forward(rows);
    norm(weights_.norm, /*add_branch=*/true, 0, rows.rows);
    head(0, logits_.narrow(0, rows.first, rows.rows), rows);
  });
}

// In whole units of 16 bytes, so that what comes behind is aligned.
int64_t Decoder::cache_bytes(int64_t positions) const {
  const auto element = static_cast<int64_t>(c10::elementSize(scalar_type(dtype_)));
  return ops::round_up(2 * config_.num_hidden_layers * kv_size(config_) * positions * element, 16);
}

Decoder::Cache Decoder::make_cache(int first_row, int rows) const {
  const auto options = on_device(queue_.device()).dtype(scalar_type(dtype_));
  const std::vector<int64_t> shape = {config_.num_hidden_layers, rows, config_.num_key_value_heads, shape_.max_context,
                                      config_.head_dim};
  return {at::empty(shape, options), at::empty(shape, options), first_row, rows};
}

void Decoder::add_spare() {
  queue_.run([&] { spare_ = make_cache(shape_.slots(), shape_.lanes); });
}

void Decoder::drop_spare() { spare_ = {}; }

CacheCopyArgs Decoder::copy_args(int row, int begin, int count, void* piece) {
  const Cache& cache = cache_of(row);
  return {cache.keys.mutable_data_ptr(),
          cache.values.mutable_data_ptr(),
          piece,
          static_cast<int>(config_.num_hidden_layers),
          cache.rows,
          static_cast<int>(config_.num_key_value_heads),
          shape_.max_context,
          static_cast<int>(config_.head_dim * cache.keys.element_size()),
          row - cache.first_row,
          begin,
          count};
}

void Decoder::save(int row, int begin, int count, void* piece) {
  const DeviceGuard guard(queue_.device());
  save_cache(copy_args(row, begin, count, piece), queue_.stream());
}

void Decoder::restore(int row, int begin, int count, void* piece) {
  const DeviceGuard guard(queue_.device());
  restore_cache(copy_args(row, begin, count, piece), queue_.stream());
}

void Decoder::prefill(const int32_t* tokens, int count, int row, int start, bool last) {
  TORCH_INTERNAL_ASSERT(count >= 1 && count <= kChunkTokens && start + count <= shape_.max_context);
  queue_.run([&] {
    embed(tokens, count);
    forward({count, true, row, start});
    if (last) {
      norm(weights_.norm, /*add_branch=*/true, count - 1, 1);
      head(count - 1, logits_of(row), {1, true, row, start});
    }
  });
}

void Decoder::prefill(const int32_t* tokens, int count, int row, int start, at::Tensor& logits) {
  TORCH_INTERNAL_ASSERT(count >= 1 && count <= kChunkTokens && start + count <= shape_.max_context);
  const Batch rows = {count, true, row, start};
  queue_.run([&] {
    embed(tokens, count);
    forward(rows);
    norm(weights_.norm, /*add_branch=*/true, 0, count);
    head(0, logits, rows);
  });
}

// The tokens of a prompt.
void Decoder::embed(const int32_t* tokens, int count) {
  cuda::embedding({weights_.embedding.const_data_ptr(), tokens, hidden_.mutable_data_ptr<float>(), count, 1,
                   static_cast<int>(config_.hidden_size), dtype_},
                  queue_.stream());
}

// Leaves the last layer's branch to be added by the norm that follows.
void Decoder::forward(const Batch& batch) {
  for (int i = 0; i < config_.num_hidden_layers; ++i) {
    const DeviceLayer& layer = weights_.layers[i];
    norm(layer.input_norm, /*add_branch=*/i > 0, 0, batch.rows);
    multiply(layer.qkv, normed_, qkv_, batch);
    adapt(batch, i, DeviceAdapters::attention);
    attend(batch, i);
    multiply(layer.o, attended_, branch_, batch);
    adapt(batch, i, DeviceAdapters::output);
    norm(layer.post_attention_norm, /*add_branch=*/true, 0, batch.rows);
    feed_forward(batch, i);
    multiply(layer.down, activated_, branch_, batch);
    adapt(batch, i, DeviceAdapters::down);
  }
}

// Gate, up and what they make, with one kernel where that can be.
void Decoder::feed_forward(const Batch& batch, int index) {
  const DeviceLayer& layer = weights_.layers[index];
  LinearArgs args = linear_args(layer.gate_up, normed_, activated_, batch);
  if (adapters_.empty() && linear_serves(args) && linear_gates(args)) {
    args.gated = static_cast<int>(config_.intermediate_size);
    args.up_offset = static_cast<int>(up_offset_);
    return cuda::linear(args, queue_.stream());
  }
  multiply(layer.gate_up, normed_, gate_up_, batch);
  adapt(batch, index, DeviceAdapters::mlp);
  cuda::swiglu({gate_up_.const_data_ptr(), static_cast<int>(gate_up_.size(1)), static_cast<int>(up_offset_),
                activated_.mutable_data_ptr(), batch.rows, static_cast<int>(config_.intermediate_size), dtype_},
               queue_.stream());
}

// Adds to the products of one input what the lanes' adapters make of it.
void Decoder::adapt(const Batch& batch, int layer, DeviceAdapters::Input input) {
  const int lane = batch.prompt ? batch.slot % shape_.lanes : -1;
  if (adapters_.empty() || (lane >= 0 && !adapters_.adapts(lane))) {
    return;
  }
  const bool is_attention = input == DeviceAdapters::attention;
  const at::Tensor& x = input == DeviceAdapters::output ? attended_
                        : input == DeviceAdapters::down ? activated_
                                                        : normed_;
  at::Tensor& y = is_attention ? qkv_ : input == DeviceAdapters::mlp ? gate_up_ : branch_;
  LoraArgs args = {};
  args.updates = adapters_.updates(layer, input);
  args.products = is_attention ? 3 : input == DeviceAdapters::mlp ? 2 : 1;
  args.x = x.const_data_ptr();
  args.in = static_cast<int>(x.size(1));
  args.x_stride = args.in;
  args.y = y.mutable_data_ptr();
  args.y_stride = static_cast<int>(y.size(1));
  args.offset[1] = static_cast<int>(is_attention ? k_offset_ : up_offset_);
  args.offset[2] = static_cast<int>(v_offset_);
  args.lanes = shape_.lanes;
  args.lane = lane;
  args.position = positions_of(batch);
  args.rows = batch.rows;
  args.max_rank = adapters_.max_rank();
  args.dtype = dtype_;
  cuda::lora(args, queue_.stream());
}

void Decoder::attend(const Batch& batch, int index) {
  const DeviceLayer& layer = weights_.layers[index];
  const Cache& cache = batch.prompt ? cache_of(batch.slot) : cache_;
  at::Tensor keys = cache.keys.select(0, index);
  at::Tensor values = cache.values.select(0, index);
  RopeArgs rope = {};
  rope.qkv = qkv_.mutable_data_ptr();
  rope.stride = static_cast<int>(qkv_.size(1));
  rope.k_offset = static_cast<int>(k_offset_);
  rope.v_offset = static_cast<int>(v_offset_);
  rope.k_cache = keys.mutable_data_ptr();
  rope.v_cache = values.mutable_data_ptr();
  rope.cos = data(cos_);
  rope.sin = data(sin_);
  rope.q_norm = data(layer.q_norm);
  rope.k_norm = data(layer.k_norm);
  rope.epsilon = static_cast<float>(config_.rms_norm_eps);
  rope.position = positions_of(batch);
  rope.start = batch.start;
  rope.slot = batch.prompt ? batch.slot - cache.first_row : -1;
  rope.slots = batch.slots;
  rope.rows = batch.rows;
  rope.heads = static_cast<int>(config_.num_attention_heads);
  rope.kv_heads = static_cast<int>(config_.num_key_value_heads);
  rope.head_dim = static_cast<int>(config_.head_dim);
  rope.capacity = static_cast<int>(shape_.max_context);
  rope.dtype = dtype_;
  cuda::rope_and_cache(rope, queue_.stream());
  if (batch.prompt) {
    return attend_prompt(batch, index);
  }
  AttentionArgs args = attention_args(config_, shape_, batch.rows, dtype_);
  args.qkv = qkv_.const_data_ptr();
  args.k_cache = keys.const_data_ptr();
  args.v_cache = values.const_data_ptr();
  args.y = attended_.mutable_data_ptr();
  args.position = positions_of(batch);
  args.slots = batch.slots;
  args.window = static_cast<int>(config_.sliding_windows[index]);
  args.splits =
      attention_splits(args.rows, args.kv_heads, args.capacity, device_.multiprocessors, device_.compute_capability);
  cuda::attention(args, queue_.stream());
}

void Decoder::attend_prompt(const Batch& batch, int index) {
  const int64_t rows = batch.rows;
  const std::vector<int64_t> heads = {rows, config_.num_attention_heads, config_.head_dim};
  const at::Tensor q = qkv_.narrow(0, 0, rows).narrow(1, 0, q_size(config_)).view(heads);
  const at::Tensor y = attended_.narrow(0, 0, rows).view(heads);
  const Cache& cache = cache_of(batch.slot);
  const auto seen = [&](const at::Tensor& side) {
    return side.select(0, index).select(0, batch.slot - cache.first_row).narrow(1, 0, batch.start + rows);
  };
  const at::Tensor keys = seen(cache.keys);
  const at::Tensor values = seen(cache.values);
  const int64_t window = config_.sliding_windows[index];
  queue_.enqueue([=] {
    if (!prompt_attention(q, keys, values, window, y)) {
      masked_attention(q, keys, values, window, y);
    }
  });
}

void Decoder::norm(const at::Tensor& weight, bool add_branch, int first_row, int rows) {
  at::Tensor hidden = hidden_.narrow(0, first_row, rows);
  at::Tensor normed = normed_.narrow(0, first_row, rows);
  const at::Tensor branch = branch_.narrow(0, first_row, rows);
  cuda::rms_norm({hidden.mutable_data_ptr<float>(), add_branch ? branch.const_data_ptr() : nullptr, data(weight),
                  normed.mutable_data_ptr(), rows, static_cast<int>(config_.hidden_size),
                  static_cast<float>(config_.rms_norm_eps), dtype_},
                 queue_.stream());
}

// NOLINTNEXTLINE(performance-unnecessary-value-param): a handle, which multiply() writes through.
void Decoder::head(int first_row, at::Tensor logits, const Batch& batch) {
  const at::Tensor x = normed_.narrow(0, first_row, batch.rows);
  multiply(weights_.lm_head, x, logits, batch);
}

// The weights as the matrix library reads them: quantized ones where dequantize() leaves them.
at::Tensor Decoder::library_weight(const DeviceLinear& linear) const {
  const ops::Matrix& matrix = linear.matrix;
  return ops::is_quantized(matrix.type)
             ? dequantized_.narrow(0, 0, matrix.out * matrix.in).view({matrix.out, matrix.in})
             : linear.weight;
}

LinearArgs Decoder::linear_args(const DeviceLinear& linear, const at::Tensor& x, at::Tensor& y,
                                const Batch& batch) const {
  LinearArgs args = {};
  args.weight = linear.matrix;
  args.bias = data(linear.bias);
  args.y_stride = static_cast<int>(y.size(1));
  args.y_float = y.scalar_type() == at::kFloat;
  args.position = positions_of(batch);
  args.dtype = dtype_;
  args.x = x.const_data_ptr();
  args.y = y.mutable_data_ptr();
  args.rows = batch.rows;
  return args;
}

// y = x W^T + bias for the first rows of x: by our own kernel where they are few, else by the matrix library.
void Decoder::multiply(const DeviceLinear& linear, const at::Tensor& x, at::Tensor& y, const Batch& batch) {
  const LinearArgs args = linear_args(linear, x, y, batch);
  if (linear_serves(args)) {
    return cuda::linear(args, queue_.stream());
  }
  if (ops::is_quantized(linear.matrix.type)) {
    cuda::dequantize(linear.matrix, dequantized_.mutable_data_ptr(), dtype_, queue_.stream());
  }
  const int64_t rows = std::min<int64_t>({padded_rows(batch.rows), x.size(0), y.size(0)});
  at::Tensor out = y.narrow(0, 0, rows).narrow(1, 0, linear.matrix.out);
  matmul(x.narrow(0, 0, rows), library_weight(linear), out);
  if (linear.bias.defined()) {
    add_bias({args.y, args.bias, batch.rows, static_cast<int>(linear.matrix.out), args.y_stride,
              args.y_float ? DType::float32 : dtype_},
             queue_.stream());
  }
}

}  // namespace dlf::cuda
