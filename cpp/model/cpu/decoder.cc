#include "model/cpu/decoder.h"

#include <ATen/ops/empty.h>
#include <c10/util/Exception.h>

#include <algorithm>
#include <array>

#include "ops/activation.h"
#include "ops/attention.h"
#include "ops/embedding.h"
#include "ops/linear.h"
#include "ops/norm.h"
#include "ops/rope.h"

namespace dlf {
namespace {

float* data(at::Tensor& tensor) { return tensor.mutable_data_ptr<float>(); }
const float* data(const at::Tensor& tensor) { return tensor.defined() ? tensor.const_data_ptr<float>() : nullptr; }

ops::LinearArgs product(const LinearWeights& linear, float* y, int64_t rows, bool accumulate = false) {
  return {linear.matrix, data(linear.bias), y, rows, accumulate};
}

int64_t most_rows(int64_t rows) { return std::max(Decoder::kChunkTokens, rows); }

constexpr int64_t kMostAdapted = 3;  // products of one input: q, k and v

// The widest input of a linear layer.
int64_t most_in(const ModelConfig& config) {
  return std::max({config.hidden_size, config.num_attention_heads * config.head_dim, config.intermediate_size});
}

}  // namespace

Decoder::Decoder(std::shared_ptr<const Weights> weights, int64_t slots, int64_t max_context, ThreadTeam& team,
                 std::vector<std::shared_ptr<const Adapter>> adapters, int64_t rows)
    : weights_(std::move(weights)),
      cache_(weights_->config(), weights_->dtype(), slots, max_context),
      decode_rows_(rows > 0 ? rows : slots),
      team_(team),
      rope_(weights_->config(), max_context),
      input_(most_rows(decode_rows_), most_in(weights_->config())),
      adapters_(std::move(adapters)) {
  const ModelConfig& config = weights_->config();
  TORCH_CHECK_VALUE(weights_->embedding.device().is_cpu(), "the weights are on ", weights_->embedding.device(),
                    "; what runs on the processor must be on the CPU");
  TORCH_CHECK_VALUE(weights_->dtype() != DType::float16, "float16 is for CUDA devices; load with bfloat16 or float32");
  rows = most_rows(decode_rows_);
  const int64_t q_size = config.num_attention_heads * config.head_dim;
  const int64_t kv_size = config.num_key_value_heads * config.head_dim;
  hidden_ = at::empty({rows, config.hidden_size}, at::kFloat);
  normed_ = at::empty({rows, config.hidden_size}, at::kFloat);
  q_ = at::empty({rows, q_size}, at::kFloat);
  k_ = at::empty({rows, kv_size}, at::kFloat);
  v_ = at::empty({rows, kv_size}, at::kFloat);
  attended_ = at::empty({rows, q_size}, at::kFloat);
  gate_ = at::empty({rows, config.intermediate_size}, at::kFloat);
  up_ = at::empty({rows, config.intermediate_size}, at::kFloat);
  prefill_rows_.reserve(kChunkTokens);
  int64_t rank = 0;
  for (const std::shared_ptr<const Adapter>& adapter : adapters_) {
    check_fits(*adapter, *weights_);
    rank = std::max(rank, adapter->max_rank());
  }
  if (rank > 0) {
    runs_.reserve(rows);
    updates_.reserve(rows * kMostAdapted);
    inner_ = at::empty({rows, kMostAdapted, rank}, at::kFloat);
  }
}

void Decoder::decode(std::span<const Row> rows, float* logits) {
  TORCH_INTERNAL_ASSERT(static_cast<int64_t>(rows.size()) <= decode_rows_, rows.size(), " rows of ", decode_rows_);
  forward(rows, Phase::decode);
  head(data(hidden_), static_cast<int64_t>(rows.size()), logits, Phase::decode);
}

void Decoder::prefill(std::span<const int64_t> tokens, int64_t slot, int64_t position, float* logits, bool all_logits,
                      int64_t adapter) {
  const ModelConfig& config = weights_->config();
  const auto count = static_cast<int64_t>(tokens.size());
  TORCH_CHECK_VALUE(count > 0 && position >= 0 && position <= cache_.max_context() - count, count,
                    " tokens from position ", position, " on do not fit the context of ", cache_.max_context());
  TORCH_CHECK_INDEX(slot >= 0 && slot < cache_.slots(), "slot ", slot, " of ", cache_.slots());
  TORCH_CHECK_INDEX(adapter < static_cast<int64_t>(adapters_.size()), "adapter ", adapter, " of ", adapters_.size());
  for (const int64_t token : tokens) {
    TORCH_CHECK_INDEX(token >= 0 && token < config.vocab_size, "token id ", token, " is outside the vocabulary of ",
                      config.vocab_size);
  }
  for (int64_t begin = 0; begin < count; begin += kChunkTokens) {
    const int64_t end = std::min(begin + kChunkTokens, count);
    prefill_rows_.clear();
    for (int64_t i = begin; i < end; ++i) {
      prefill_rows_.push_back({tokens[i], slot, position + i, adapter});
    }
    forward(prefill_rows_, Phase::prefill);
    if (all_logits) {
      head(data(hidden_), end - begin, logits + begin * config.vocab_size, Phase::prefill);
    }
  }
  if (!all_logits && logits != nullptr) {
    const auto last = static_cast<int64_t>(prefill_rows_.size()) - 1;
    head(data(hidden_) + last * config.hidden_size, 1, logits, Phase::prefill);
  }
}

void Decoder::forward(std::span<const Row> rows, Phase phase) {
  const auto count = static_cast<int64_t>(rows.size());
  ops::embedding({weights_->embedding.const_data_ptr(), rows.data(), data(hidden_), count,
                  weights_->config().hidden_size, weights_->dtype()});
  find_runs(rows);
  for (int64_t i = 0; i < weights_->config().num_hidden_layers; ++i) {
    attention_block(weights_->layers[i], i, rows, phase);
    mlp_block(weights_->layers[i], i, count, phase);
  }
}

void Decoder::find_runs(std::span<const Row> rows) {
  runs_.clear();
  for (size_t i = 0; i < rows.size() && !adapters_.empty(); ++i) {
    const int64_t index = rows[i].adapter;
    if (index < 0) {
      continue;
    }
    if (i > 0 && rows[i - 1].adapter == index) {
      ++runs_.back().rows;
    } else {
      runs_.push_back({adapters_[index].get(), static_cast<int64_t>(i), 1});
    }
  }
}

// Adds what the rows' adapters make of x to products of it.
void Decoder::adapt(int64_t layer, const float* x, int64_t rows, std::initializer_list<Adapted> products) {
  updates_.clear();
  float* inner = runs_.empty() ? nullptr : data(inner_);
  int64_t in = 0;
  for (const Run& run : runs_) {
    for (const Adapted& product : products) {
      const LowRank& update = run.adapter->layers[layer].*product.update;
      if (!update.defined()) {
        continue;
      }
      in = update.a.size(1);
      const int64_t out = update.b.size(1);
      const ops::Matrix a = {update.a.const_data_ptr(), nullptr, update.rank(), in, float_type(weights_->dtype()), 0};
      updates_.push_back(
          {a, update.b.const_data_ptr(), update.scale, product.y + run.row * out, out, run.row, run.rows, inner});
      inner += run.rows * update.rank();
    }
  }
  if (!updates_.empty()) {
    ops::lora(input_.prepare(x, rows, in, updates_[0].a.type, team_), updates_, team_);
  }
}

// hidden += o(attention(q, k, v)), with q, k, v = projections of norm(hidden).
void Decoder::attention_block(const LayerWeights& layer, int64_t index, std::span<const Row> rows, Phase phase) {
  const ModelConfig& config = weights_->config();
  const auto count = static_cast<int64_t>(rows.size());
  const auto epsilon = static_cast<float>(config.rms_norm_eps);
  const int64_t heads = config.num_attention_heads;
  const int64_t kv_heads = config.num_key_value_heads;

  ops::rms_norm({data(hidden_), data(layer.input_norm), data(normed_), count, config.hidden_size, epsilon}, team_);
  const ops::LinearInputRows input = input_of(layer.q, data(normed_), count);
  const std::array products = {product(layer.q, data(q_), count), product(layer.k, data(k_), count),
                               product(layer.v, data(v_), count)};
  multiply(input, products, phase);
  adapt(index, data(normed_), count,
        {{&LayerAdapter::q, data(q_)}, {&LayerAdapter::k, data(k_)}, {&LayerAdapter::v, data(v_)}});
  if (layer.q_norm.defined()) {
    ops::rms_norm({data(q_), data(layer.q_norm), data(q_), count * heads, config.head_dim, epsilon}, team_);
  }
  if (layer.k_norm.defined()) {
    ops::rms_norm({data(k_), data(layer.k_norm), data(k_), count * kv_heads, config.head_dim, epsilon}, team_);
  }
  ops::rope_and_cache(
      {data(q_), data(k_), data(v_), cache_.keys(index), cache_.values(index), data(rope_.cos), data(rope_.sin),
       rows.data(), count, heads, kv_heads, config.head_dim, cache_.capacity(), weights_->dtype()},
      team_);
  const float scale = 1.0F / std::sqrt(static_cast<float>(config.head_dim));
  const ops::AttentionArgs attention = {data(q_),
                                        cache_.keys(index),
                                        cache_.values(index),
                                        data(attended_),
                                        rows.data(),
                                        count,
                                        heads,
                                        kv_heads,
                                        config.head_dim,
                                        cache_.capacity(),
                                        config.sliding_windows[index],
                                        scale,
                                        weights_->dtype()};
  if (phase == Phase::prefill) {
    ops::prefill_attention(attention, team_);
  } else {
    ops::attention(attention, team_);
  }
  project(layer.o, data(attended_), data(hidden_), count, phase, /*accumulate=*/true);
  adapt(index, data(attended_), count, {{&LayerAdapter::o, data(hidden_)}});
}

// hidden += down(silu(gate) * up), with gate, up = projections of norm(hidden).
void Decoder::mlp_block(const LayerWeights& layer, int64_t index, int64_t rows, Phase phase) {
  const ModelConfig& config = weights_->config();
  ops::rms_norm({data(hidden_), data(layer.post_attention_norm), data(normed_), rows, config.hidden_size,
                 static_cast<float>(config.rms_norm_eps)},
                team_);
  const ops::LinearInputRows input = input_of(layer.gate, data(normed_), rows);
  const std::array products = {product(layer.gate, data(gate_), rows), product(layer.up, data(up_), rows)};
  if (phase == Phase::prefill || !runs_.empty()) {
    multiply(input, products, phase);
    adapt(index, data(normed_), rows, {{&LayerAdapter::gate, data(gate_)}, {&LayerAdapter::up, data(up_)}});
    ops::swiglu({data(gate_), data(up_), data(gate_), rows * config.intermediate_size}, team_);
  } else {
    ops::linear_swiglu(input, products[0], products[1], team_);
  }
  project(layer.down, data(gate_), data(hidden_), rows, phase, /*accumulate=*/true);
  adapt(index, data(gate_), rows, {{&LayerAdapter::down, data(hidden_)}});
}

void Decoder::project(const LinearWeights& linear, const float* x, float* y, int64_t rows, Phase phase,
                      bool accumulate) {
  const std::array products = {product(linear, y, rows, accumulate)};
  multiply(input_of(linear, x, rows), products, phase);
}

void Decoder::multiply(const ops::LinearInputRows& x, std::span<const ops::LinearArgs> products, Phase phase) {
  if (phase == Phase::decode) {
    return ops::linear(x, products, team_);
  }
  for (const ops::LinearArgs& args : products) {
    ops::linear_prefill(x, args, team_);
  }
}

ops::LinearInputRows Decoder::input_of(const LinearWeights& linear, const float* x, int64_t rows) {
  return input_.prepare(x, rows, linear.matrix.in, linear.matrix.type, team_);
}

void Decoder::head(const float* hidden, int64_t rows, float* logits, Phase phase) {
  const ModelConfig& config = weights_->config();
  ops::rms_norm(
      {hidden, data(weights_->norm), data(normed_), rows, config.hidden_size, static_cast<float>(config.rms_norm_eps)},
      team_);
  project(weights_->lm_head, data(normed_), logits, rows, phase);
}

}  // namespace dlf
