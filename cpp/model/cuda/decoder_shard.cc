#include "model/cuda/decoder_shard.h"

#include <ATen/ops/arange.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/empty_like.h>
#include <ATen/ops/full.h>
#include <ATen/ops/remainder.h>
#include <ATen/ops/zeros.h>
#include <c10/util/Exception.h>

#include <algorithm>

#include "model/block.h"
#include "model/block_store.h"
#include "model/cuda/pass.h"
#include "model/cuda/prompt_attention.h"
#include "ops/cuda/cache_blocks.h"
#include "ops/cuda/experts.h"
#include "support/scalar_type.h"

namespace dlf::cuda {
namespace {

constexpr int64_t kMaxHeadDim = 256;  // of the attention kernel
// Memory of the libraries for each decoder's stream: cuBLAS takes 32 MiB on Hopper; the rest is for graphs and for
// memory in whole pages.
constexpr int64_t kLibraryBytes = 64 << 20;

// Outputs of the query, key and value projections, and of gate and up: each begins on a whole tile.
int64_t qkv_size(const AttentionSpec& attention) {
  return padded_outputs(attention.q_size()) + 2 * padded_outputs(attention.kv_size());
}
int64_t gate_up_size(const ModelSpec& spec) {
  return (spec.feed_forward.gated ? 2 : 1) * padded_outputs(spec.dense_size());
}

// Most runs of pairs that a router makes of up to so many rows.
int64_t most_runs(const ModelSpec& spec, int64_t rows) {
  int64_t runs = 0;
  for (const int64_t some : {std::min<int64_t>(rows, kExpertStepRows), rows}) {
    runs = std::max(
        runs, ops::most_runs(some, spec.experts.count, spec.experts.chosen, expert_run_pairs(static_cast<int>(some))));
  }
  return runs;
}

// Bytes of the tables of rotations and of factors on queries.
int64_t rope_bytes(const ModelSpec& spec, int64_t max_context) {
  int64_t floats = 0;
  for (const RopeSpec& rope : spec.ropes) {
    floats += 2 * static_cast<int64_t>(rope.inv_freq.size()) + (rope.query_beta != 0 ? 1 : 0);
  }
  return floats * max_context * 4;
}

// Weights of the largest matrix that may have to be dequantized.
int64_t largest_matrix(const ModelSpec& spec) {
  const int64_t outputs = std::max({qkv_size(spec.attention), gate_up_size(spec), spec.dense_size(), spec.vocab_size});
  return outputs * spec.hidden_size;
}

}  // namespace

DecoderShard::DecoderShard(const Weights& weights, const DecoderShape& shape, Queue& queue,
                           const std::vector<std::shared_ptr<const Adapter>>& adapters,
                           const std::vector<int64_t>& lane_adapter)
    : spec_(weights.spec()),
      dtype_(weights.dtype()),
      shape_(shape),
      queue_(queue),
      weights_(DeviceWeights::of(weights, queue)),
      adapters_(adapters, lane_adapter, spec_.feed_forward.gated, queue.device()),
      k_offset_(padded_outputs(spec_.attention.q_size())),
      v_offset_(k_offset_ + padded_outputs(spec_.attention.kv_size())),
      up_offset_(spec_.feed_forward.gated ? padded_outputs(spec_.dense_size()) : 0),
      device_(devices().at(queue.device())) {
  TORCH_CHECK_VALUE(spec_.attention.head_dim <= kMaxHeadDim, "head_dim is ", spec_.attention.head_dim,
                    "; on CUDA it can be at most ", kMaxHeadDim);
  check_context(spec_, shape.max_context);
  const auto floats = on_device(queue.device()).dtype(at::kFloat);
  const auto halves = on_device(queue.device()).dtype(scalar_type(dtype_));
  const auto integers = on_device(queue.device()).dtype(at::kInt);
  for (const RopeSpec& rope : spec_.ropes) {
    RopeTable& table = ropes_.emplace_back(rope, shape.max_context);
    table.cos = table.cos.to(floats);
    table.sin = table.sin.to(floats);
    table.query_scale = table.query_scale.defined() ? table.query_scale.to(floats) : at::Tensor();
  }
  const std::vector<int64_t> blocks = {spec_.layer_count(), shape.most_blocks(), spec_.attention.kv_heads,
                                       ops::kCacheBlock, spec_.attention.head_dim};
  keys_ = at::empty(blocks, halves);
  values_ = at::empty_like(keys_);
  // Blocks that slots have until others are set; ready_libraries() reads them.
  table_ = at::arange((shape.slots() + shape.lanes) * shape.of_slot(), integers)
               .remainder(shape.most_blocks())
               .view({-1, shape.of_slot()});
  prompt_keys_ = at::empty({spec_.attention.kv_heads, shape.max_context, spec_.attention.head_dim}, halves);
  prompt_values_ = at::empty_like(prompt_keys_);
  entries_.reserve(shape.slots() + shape.lanes);
  tokens_ = at::zeros({shape.max_tokens}, integers);
  positions_ = at::full({shape.rows()}, -1, integers);
  const int64_t rows = shape.most_rows();
  hidden_ = at::zeros({rows, spec_.hidden_size}, floats);
  normed_ = at::zeros({rows, spec_.hidden_size}, halves);
  qkv_ = at::zeros({rows, qkv_size(spec_.attention)}, halves);
  attended_ = at::zeros({rows, spec_.attention.q_size()}, halves);
  branch_ = at::zeros({rows, spec_.hidden_size}, halves);
  gate_up_ = at::zeros({rows, gate_up_size(spec_)}, halves);
  activated_ = at::zeros({rows, spec_.dense_size()}, halves);
  if (spec_.experts.count > 0) {
    experts_ = ExpertBuffers(spec_, rows, most_runs(spec_, rows), halves);
    if (adapters_.expert_rank() > 0) {
      expert_inner_ = at::empty({rows * spec_.experts.chosen, 2, adapters_.expert_rank()}, floats);
    }
  }
  logits_ = at::zeros({shape.rows_with_logits(), spec_.vocab_size}, floats);
  if (weights.quantized()) {
    dequantized_ = at::empty({largest_matrix(spec_)}, halves);
  }
}

// Calls the libraries with the shapes that prompts will have, so that no request waits while they load kernels, make
// handles or take memory. The results are not used.
void DecoderShard::ready_libraries(at::Tensor& output) {
  const auto capacity = static_cast<int>(shape_.max_context);
  queue_.run([&] {
    for (int rows = padded_rows(1); rows <= kChunkTokens; rows = padded_rows(rows + 1)) {
      const int count = std::min(rows, capacity);
      Pass::prompt(*this, 0, 0, count).multiply_once(rows, output);
      for (int end = count; end < capacity; end = std::min(2 * end, capacity)) {
        Pass::prompt(*this, 0, end - count, count).attend_once();
      }
      Pass::prompt(*this, 0, capacity - count, count).attend_once();
    }
  });
}

DecoderBytes DecoderShard::bytes(const ModelSize& model, const DecoderShape& shape) {
  const ModelSpec& spec = model.spec;
  const AttentionSpec& attention = spec.attention;
  const auto element = static_cast<int64_t>(c10::elementSize(scalar_type(model.dtype)));
  const int64_t row = spec.hidden_size * (4 + 2 * element) +
                      (qkv_size(attention) + attention.q_size() + gate_up_size(spec) + spec.dense_size()) * element;
  DecoderBytes bytes = {};
  bytes.weights = model.weights;
  const int64_t position = 2 * attention.kv_size() * element;  // of one layer
  bytes.kv_cache = shape.most_blocks() * block_bytes(spec, model.dtype);
  bytes.activations = shape.most_rows() * row + rope_bytes(spec, shape.max_context) +
                      (shape.max_tokens + shape.rows()) * 4 + shape.max_context * position +
                      (shape.slots() + shape.lanes) * shape.of_slot() * 4;
  if (spec.experts.count > 0) {
    bytes.activations += ExpertBuffers::bytes(spec, shape.most_rows(), most_runs(spec, shape.most_rows()), element) +
                         shape.most_rows() * spec.experts.chosen * 2 * model.expert_rank * 4;
  }
  bytes.logits = shape.rows_with_logits() * spec.vocab_size * 4;
  bytes.workspace = kLibraryBytes + (model.quantized ? largest_matrix(spec) * element : 0);
  if (attention.softcap > 0) {
    bytes.workspace += capped_attention_bytes(spec, kChunkTokens, shape.max_context);
  } else if (model.dtype == DType::float32) {  // masked attention holds a chunk's scores before and after the softmax
    bytes.workspace += 2 * attention.heads * kChunkTokens * shape.max_context * 4;
  }
  return bytes;
}

void DecoderShard::set_block(int64_t slot, int64_t index, int32_t block) {
  entries_.push_back({slot * shape_.of_slot() + index, block});
}

void DecoderShard::change_blocks() {
  const DeviceGuard guard(queue_.device());
  for (size_t first = 0; first < copies_.size(); first += kBlockChanges) {
    BlockCopies args = {};
    args.keys = keys_.mutable_data_ptr();
    args.values = values_.mutable_data_ptr();
    args.layers = static_cast<int>(keys_.size(0));
    args.blocks = keys_.size(1);
    args.block_bytes = keys_.stride(1) * keys_.element_size();
    for (size_t i = first; i < std::min(first + kBlockChanges, copies_.size()); ++i) {
      args.from[args.count] = copies_[i].from;
      args.to[args.count++] = copies_[i].to;
    }
    copy_blocks(args, queue_.stream());
  }
  for (size_t first = 0; first < entries_.size(); first += kBlockChanges) {
    TableChanges args = {};
    args.table = table_.mutable_data_ptr<int32_t>();
    for (size_t i = first; i < std::min(first + kBlockChanges, entries_.size()); ++i) {
      args.entry[args.count] = entries_[i].at;
      args.block[args.count++] = entries_[i].block;
    }
    set_blocks(args, queue_.stream());
  }
  copies_.clear();
  entries_.clear();
}

}  // namespace dlf::cuda
