#include "model/shard.h"

#include <ATen/ops/full.h>
#include <ATen/ops/index_select.h>
#include <c10/util/Exception.h>

#include <algorithm>
#include <cmath>
#include <initializer_list>
#include <string>
#include <utility>

#include "model/slots.h"

namespace dlf {
namespace {

constexpr int64_t kMostInnerUnit = 256;  // a multiple of the groups of all usual formats

// Shares out `total` elements as evenly as whole units can be.
Range share(int64_t total, int64_t unit, const Shard& shard) {
  const int64_t units = (total + unit - 1) / unit;
  const int64_t first = units * shard.rank / shard.count * unit;
  const int64_t end = std::min(units * (shard.rank + 1) / shard.count * unit, total);
  return {first, end - first};
}

// The largest unit that gives every shard some.
int64_t inner_unit(int64_t size, int64_t count) {
  int64_t unit = kMostInnerUnit;
  while (unit > 1 && (size + unit - 1) / unit < count) {
    unit /= 2;
  }
  return unit;
}

at::Tensor rows_of(const at::Tensor& tensor, const Range& range) {
  return tensor.defined() ? tensor.narrow(0, range.first, range.count) : tensor;
}

at::Tensor columns_of(const at::Tensor& tensor, const Range& range) {
  return tensor.narrow(1, range.first, range.count).contiguous();
}

// The layer with some of its outputs.
LinearWeights outputs_of(const LinearWeights& whole, const Range& range, const std::string& name) {
  LinearWeights part = whole;
  part.bias = rows_of(whole.bias, range);
  part.matrix.out = range.count;
  if (ops::is_quantized(whole.matrix.type)) {
    TORCH_CHECK_VALUE(range.first % ops::kTileOutputs == 0, "a shard would begin at output ", range.first, " of ", name,
                      ", whose quantized weights can be split at multiples of ", ops::kTileOutputs,
                      "; use fewer devices, or weights='bf16'");
    part.tensors = ops::outputs_of(whole.tensors, range.first, range.count);
  } else {
    part.tensors.data = rows_of(whole.tensors.data, range);
  }
  return part;
}

// The layer with some of its inputs: a term of its sum. The first shard adds the bias.
LinearWeights inputs_of(const LinearWeights& whole, const Range& range, const Shard& shard, const std::string& name) {
  LinearWeights part = whole;
  part.bias = shard.rank == 0 ? whole.bias : at::Tensor();
  part.matrix.in = range.count;
  if (ops::is_quantized(whole.matrix.type)) {
    const int64_t unit = ops::input_unit(whole.matrix);
    TORCH_CHECK_VALUE(range.first % unit == 0, "a shard would begin at input ", range.first, " of ", name,
                      ", whose quantized weights can be split at multiples of ", unit,
                      "; use fewer devices, or weights with smaller groups, such as weights='int4'");
    part.tensors = ops::inputs_of(whole.tensors, whole.matrix, range.first, range.count);
  } else {
    part.tensors.data = whole.tensors.data.narrow(1, range.first, range.count);
  }
  return part;
}

Range heads_of(const Range& heads, int64_t head_dim) { return {heads.first * head_dim, heads.count * head_dim}; }

// Which of its outputs or inputs a shard has of a layer.
struct Cut {
  bool outputs;
  Range range;
};

Cut cut_of(const ModelSpec& spec, const ShardRanges& ranges, const std::string& name) {
  const int64_t head_dim = spec.attention.head_dim;
  if (name == "q" || name == "o") {
    return {name == "q", heads_of(ranges.heads, head_dim)};
  }
  if (name == "k" || name == "v") {
    return {true, heads_of(ranges.kv_heads, head_dim)};
  }
  return {name != "down", ranges.inner};
}

// Keeps the rows of a shard's tokens, with the shard's numbers.
OwnRows own_rows(const OwnRows& whole, const Range& vocab) {
  if (!whole.defined() || whole.whole()) {
    return {rows_of(whole.rows, vocab), {}, {}};
  }
  OwnRows part;
  part.row_of = at::full({vocab.count}, -1, at::kInt);
  std::vector<int64_t> kept;
  std::vector<int32_t> tokens;
  for (int64_t row = 0; row < whole.tokens.numel(); ++row) {
    const int64_t token = whole.tokens.const_data_ptr<int32_t>()[row] - vocab.first;
    if (token >= 0 && token < vocab.count) {
      part.row_of.mutable_data_ptr<int32_t>()[token] = static_cast<int32_t>(kept.size());
      kept.push_back(row);
      tokens.push_back(static_cast<int32_t>(token));
    }
  }
  if (kept.empty()) {
    return {};
  }
  const auto count = static_cast<int64_t>(kept.size());
  const at::Tensor index = at::full({count}, 0, at::kLong);
  part.tokens = at::full({count}, 0, at::kInt);
  std::copy(kept.begin(), kept.end(), index.mutable_data_ptr<int64_t>());
  std::copy(tokens.begin(), tokens.end(), part.tokens.mutable_data_ptr<int32_t>());
  part.rows = at::index_select(whole.rows, 0, index);
  return part;
}

}  // namespace

ShardRanges shard_ranges(const ModelSpec& spec, const Shard& shard) {
  const AttentionSpec& attention = spec.attention;
  const int64_t count = shard.count;
  TORCH_CHECK_VALUE(count >= 1 && count <= kMostShards && shard.rank >= 0 && shard.rank < count,
                    "a model can be split over 1 to ", kMostShards, " devices, not ", count);
  const auto check_count = [&](bool fits, const char* what, int64_t number) {
    TORCH_CHECK_VALUE(fits, "a model with ", number, " ", what, " cannot be split over ", count,
                      " devices; use fewer of them");
  };
  TORCH_CHECK_VALUE(count == 1 || spec.experts.count == 0,
                    "a model with routed experts cannot be split over several devices; give it one");
  TORCH_CHECK_VALUE(
      count == 1 || attention.head_norm != ops::HeadNorm::whole,
      "a model whose queries are normed over all heads cannot be split over several devices; give it one");
  const int64_t inner = spec.feed_forward.size;
  if (count == 1) {
    return {{0, attention.heads}, {0, attention.kv_heads}, {0, inner}, {0, spec.vocab_size}};
  }
  const int64_t group = attention.heads / attention.kv_heads;
  ShardRanges ranges = {};
  if (attention.kv_heads >= count) {
    ranges.kv_heads = share(attention.kv_heads, 1, shard);
    ranges.heads = {ranges.kv_heads.first * group, ranges.kv_heads.count * group};
  } else {  // several devices have the same keys and values
    check_count(count % attention.kv_heads == 0, "heads of keys", attention.kv_heads);
    check_count(attention.heads % count == 0, "heads", attention.heads);
    ranges.kv_heads = {shard.rank * attention.kv_heads / count, 1};
    ranges.heads = share(attention.heads, 1, shard);
  }
  ranges.inner = share(inner, inner_unit(inner, count), shard);
  ranges.vocab = share(spec.vocab_size, ops::kTileOutputs, shard);
  check_count(inner >= count, "inner channels", inner);
  check_count(ops::tiles(spec.vocab_size) >= count, "tokens", spec.vocab_size);
  return ranges;
}

ModelSpec shard_of(const ModelSpec& spec, const Shard& shard) {
  const ShardRanges ranges = shard_ranges(spec, shard);
  ModelSpec part = spec;
  part.vocab_size = ranges.vocab.count;
  part.attention.heads = ranges.heads.count;
  part.attention.kv_heads = ranges.kv_heads.count;
  part.feed_forward.size = ranges.inner.count;
  if (shard.rank > 0) {
    part.learned_positions = 0;  // the first shard adds them, like the biases of o and down
    part.attention.output_bias = false;
  }
  return part;
}

Weights shard_of(const Weights& weights, const Shard& shard) {
  const ModelSpec& spec = weights.spec();
  const ShardRanges ranges = shard_ranges(spec, shard);
  Weights part = weights;
  part.spec_ = shard_of(spec, shard);
  part.device_copies_ = std::make_shared<DeviceCopies<cuda::DeviceWeights>>();  // not those of the whole model
  part.bytes_ = shard_bytes(spec, shard, weights.bytes());
  part.embedding = outputs_of(weights.embedding, ranges.vocab, "embedding");
  const bool tied = weights.head.tensors.data.is_same(weights.embedding.tensors.data);
  part.head = tied ? part.embedding : outputs_of(weights.head, ranges.vocab, "head");
  part.head.bias = rows_of(weights.head.bias, ranges.vocab);
  if (shard.rank > 0) {
    part.positions = at::Tensor();
  }
  for (int64_t i = 0; i < spec.layer_count(); ++i) {
    LayerWeights& layer = part.layers[i];
    for (const LinearSlot& slot : linear_slots(spec, i)) {
      const auto [outputs, range] = cut_of(spec, ranges, slot.name);
      const std::string name = slot_of(i, slot.name);
      const LinearWeights& whole = weights.layers[i].*slot.weights;
      layer.*slot.weights = outputs ? outputs_of(whole, range, name) : inputs_of(whole, range, shard, name);
    }
    if (spec.attention.head_norm == ops::HeadNorm::own) {
      for (const auto& [norm, heads] : {std::pair(&layer.q_norm, ranges.heads), {&layer.k_norm, ranges.kv_heads}}) {
        const Range channels = heads_of(heads, spec.attention.head_dim);
        *norm = {rows_of(norm->weight, channels), rows_of(norm->bias, channels)};
      }
    }
  }
  return part;
}

Adapter shard_of(const Adapter& adapter, const ModelSpec& spec, const Shard& shard) {
  const ShardRanges ranges = shard_ranges(spec, shard);
  Adapter part = adapter;
  for (int64_t i = 0; i < spec.layer_count(); ++i) {
    for (const LinearSlot& slot : linear_slots(spec, i)) {
      if (LowRank& update = part.layers[i].*slot.update; update.defined()) {
        const auto [outputs, range] = cut_of(spec, ranges, slot.name);
        at::Tensor& side = outputs ? update.b : update.a;
        side = columns_of(side, range);
      }
    }
  }
  if (LowRank& update = part.embedding.update; update.defined()) {
    update.a = rows_of(update.a, ranges.vocab);
  }
  if (LowRank& update = part.head.update; update.defined()) {
    update.b = columns_of(update.b, ranges.vocab);
  }
  part.embedding.own = own_rows(adapter.embedding.own, ranges.vocab);
  part.head.own = own_rows(adapter.head.own, ranges.vocab);
  return part;
}

int64_t shard_bytes(const ModelSpec& spec, const Shard& shard, int64_t bytes) {
  const auto weights = [](const ModelSpec& of) {
    double sum = 0;
    for (const TensorSlot& slot : tensor_slots(of)) {
      sum += static_cast<double>(slot.shape[0]) * static_cast<double>(slot.shape.size() > 1 ? slot.shape[1] : 1);
    }
    return sum;
  };
  return static_cast<int64_t>(std::ceil(static_cast<double>(bytes) * weights(shard_of(spec, shard)) / weights(spec)));
}

}  // namespace dlf
