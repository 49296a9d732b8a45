#include "model/cpu/decoder.h"

#include <ATen/ops/empty.h>
#include <ATen/ops/empty_like.h>
#include <c10/util/Exception.h>

#include <algorithm>

#include "model/block.h"
#include "model/cpu/pass.h"
#include "model/slots.h"

namespace dlf {
namespace {

int64_t most_rows(int64_t rows) { return std::max(Decoder::kPassTokens, rows); }

constexpr int64_t kMostAdapted = 3;  // products of one input: q, k and v

// The widest input of a linear layer.
int64_t most_in(const ModelSpec& spec) {
  return std::max({spec.hidden_size, spec.attention.q_size(), spec.dense_size(), spec.experts.size});
}

// Most rows of such an input: those of experts are pairs.
int64_t most_inputs(const ModelSpec& spec, int64_t rows) { return rows * std::max(int64_t{1}, spec.experts.chosen); }

}  // namespace

Decoder::Decoder(std::shared_ptr<const Weights> weights, int64_t slots, int64_t max_context, ThreadTeam& team,
                 std::vector<std::shared_ptr<const Adapter>> adapters, int64_t rows, int64_t blocks)
    : weights_(std::move(weights)),
      cache_(weights_->spec(), weights_->dtype(), slots, max_context, blocks),
      decode_rows_(rows > 0 ? rows : slots),
      team_(team),
      input_(most_inputs(weights_->spec(), most_rows(decode_rows_)), most_in(weights_->spec())),
      adapters_(std::move(adapters)) {
  const ModelSpec& spec = weights_->spec();
  const at::Device device = weights_->embedding.tensors.data.device();
  TORCH_CHECK_VALUE(device.is_cpu(), "the weights are on ", device, "; a model that runs on the CPU needs them there");
  TORCH_CHECK_VALUE(weights_->dtype() != DType::float16, "float16 is for CUDA devices; load with bfloat16 or float32");
  check_context(spec, max_context);
  rows = most_rows(decode_rows_);
  for (const RopeSpec& rope : spec.ropes) {
    ropes_.emplace_back(rope, max_context);
  }
  hidden_ = at::empty({rows, spec.hidden_size}, at::kFloat);
  normed_ = at::empty({rows, spec.hidden_size}, at::kFloat);
  q_ = at::empty({rows, spec.attention.q_size()}, at::kFloat);
  k_ = at::empty({rows, spec.attention.kv_size()}, at::kFloat);
  v_ = at::empty({rows, spec.attention.kv_size()}, at::kFloat);
  attended_ = at::empty({rows, spec.attention.q_size()}, at::kFloat);
  if (spec.feed_forward.gated) {
    gate_ = at::empty({rows, spec.dense_size()}, at::kFloat);
  }
  up_ = at::empty({rows, spec.dense_size()}, at::kFloat);
  if (spec.norm.after || spec.residual_multiplier != 1) {
    branch_ = at::empty({rows, spec.hidden_size}, at::kFloat);
  }
  if (spec.experts.count > 0) {
    experts_ = ExpertBuffers(spec, rows, spec.experts.count, at::kFloat);
    expert_up_ = at::empty_like(experts_.gated);
  }
  for (std::vector<int32_t>* of_rows : {&tokens_, &positions_, &slots_}) {
    of_rows->reserve(rows);
  }
  int64_t rank = 0;
  for (const std::shared_ptr<const Adapter>& adapter : adapters_) {
    check_fits(*adapter, *weights_);
    rank = std::max(rank, adapter->max_rank());
  }
  if (!adapters_.empty()) {
    runs_.reserve(rows);
    const int64_t pairs = rows * spec.experts.chosen;
    const int64_t updates = std::max(rows * kMostAdapted, 2 * pairs);  // of experts: gate and up
    updates_.reserve(updates);
    down_updates_.reserve(pairs);
    inner_ = at::empty({updates, rank}, at::kFloat);
  }
}

void Decoder::decode(std::span<const Row> rows, float* logits) {
  TORCH_INTERNAL_ASSERT(static_cast<int64_t>(rows.size()) <= decode_rows_, rows.size(), " rows of ", decode_rows_);
  const auto count = static_cast<int>(rows.size());
  tokens_.clear();
  positions_.clear();
  slots_.clear();
  runs_.clear();
  for (int i = 0; i < count; ++i) {
    const Row& row = rows[i];
    tokens_.push_back(static_cast<int32_t>(row.token));
    positions_.push_back(static_cast<int32_t>(row.position));
    slots_.push_back(static_cast<int32_t>(row.slot));
    if (row.adapter < 0) {
      continue;
    }
    if (i > 0 && rows[i - 1].adapter == row.adapter) {
      ++runs_.back().rows;
    } else {
      runs_.push_back({adapters_[row.adapter].get(), i, 1});
    }
  }
  Pass pass(*this, {count, positions_.data(), 0, slots_.data(), 0, 0}, /*is_prompt=*/false);
  pass.embed();
  run_layers(pass);
  pass.head(0, count, logits);
}

void Decoder::prefill(std::span<const int64_t> tokens, int64_t slot, int64_t position, float* logits, bool all_logits,
                      int64_t adapter) {
  const int64_t vocab = weights_->spec().vocab_size;
  const auto count = static_cast<int64_t>(tokens.size());
  TORCH_CHECK_VALUE(count > 0 && position >= 0 && position <= cache_.max_context() - count, count,
                    " tokens from position ", position, " on do not fit the context of ", cache_.max_context());
  TORCH_CHECK_INDEX(slot >= 0 && slot < cache_.slots(), "slot ", slot,
                    " does not exist; number of slots: ", cache_.slots());
  TORCH_CHECK_INDEX(adapter < static_cast<int64_t>(adapters_.size()), "adapter ", adapter,
                    " does not exist; number of adapters: ", adapters_.size());
  for (const int64_t token : tokens) {
    TORCH_CHECK_INDEX(token >= 0 && token < vocab, "token id ", token, " is outside the vocabulary of ", vocab);
  }
  for (int64_t begin = 0; begin < count; begin += kPassTokens) {
    const int64_t end = std::min(begin + kPassTokens, count);
    const auto rows = static_cast<int>(end - begin);
    tokens_.assign(tokens.begin() + begin, tokens.begin() + end);
    runs_.clear();
    if (adapter >= 0) {
      runs_.push_back({adapters_[adapter].get(), 0, rows});
    }
    Pass pass(*this, ops::prompt_places(rows, static_cast<int>(position + begin), static_cast<int>(slot)),
              /*is_prompt=*/true);
    pass.embed();
    run_layers(pass);
    if (all_logits) {
      pass.head(0, rows, logits + begin * vocab);
    } else if (logits != nullptr && end == count) {
      pass.head(rows - 1, 1, logits);
    }
  }
}

}  // namespace dlf
