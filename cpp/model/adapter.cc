#include "model/adapter.h"

#include <ATen/ops/full.h>
#include <c10/util/Exception.h>

#include <algorithm>
#include <utility>

#include "model/slots.h"
#include "support/scalar_type.h"

namespace dlf {

ops::OwnEmbedding OwnRows::embedding() const {
  return defined() ? ops::OwnEmbedding{rows.const_data_ptr(), whole() ? nullptr : row_of.const_data_ptr<int32_t>()}
                   : ops::OwnEmbedding{};
}

ops::OwnLogits OwnRows::logits() const {
  return defined() ? ops::OwnLogits{rows.const_data_ptr(), whole() ? nullptr : tokens.const_data_ptr<int32_t>(),
                                    static_cast<int>(rows.size(0))}
                   : ops::OwnLogits{};
}

Adapter::Adapter(const ModelSpec& spec, const TensorMap& tensors,
                 const std::unordered_map<std::string, double>& scales) {
  TORCH_CHECK_VALUE(!tensors.empty(), "the adapter has no tensors");
  const auto typed = std::find_if(tensors.begin(), tensors.end(),
                                  [](const auto& one) { return one.second.scalar_type() != at::kInt; });
  const at::ScalarType type = typed == tensors.end() ? at::kInt : typed->second.scalar_type();
  TORCH_CHECK_VALUE(type == at::kFloat || type == at::kBFloat16 || type == at::kHalf,
                    "an adapter must be float32, bfloat16 or float16, not ", type);
  dtype_ = type == at::kFloat ? DType::float32 : type == at::kBFloat16 ? DType::bfloat16 : DType::float16;
  size_t taken = 0;
  const auto take_as = [&](const std::string& name, at::IntArrayRef shape, at::ScalarType as) {
    const auto found = tensors.find(name);
    TORCH_CHECK_VALUE(found != tensors.end(), "tensor ", name, " is missing");
    const at::Tensor& tensor = found->second;
    TORCH_CHECK_VALUE(tensor.scalar_type() == as && tensor.sizes() == shape && tensor.is_contiguous(), "tensor ", name,
                      " is ", tensor.scalar_type(), " ", tensor.sizes(), "; this layer takes ", as, " ", shape);
    bytes_ += static_cast<int64_t>(tensor.nbytes());
    ++taken;
    return tensor;
  };
  const auto take = [&](const std::string& name, at::IntArrayRef shape) { return take_as(name, shape, type); };
  const auto low_rank = [&](const std::string& name, int64_t out, int64_t in, bool by_token = false) {
    const auto a = tensors.find(name + ".a");
    if (a == tensors.end()) {
      return LowRank();
    }
    const int64_t rank = a->second.dim() == 2 ? a->second.size(by_token ? 1 : 0) : 0;
    TORCH_CHECK_VALUE(rank >= 1, "tensor ", name, ".a must be a matrix with ", in, by_token ? " rows" : " columns");
    const auto scale = scales.find(name);
    TORCH_CHECK_VALUE(scale != scales.end(), "the adapter has no scale for ", name);
    max_rank_ = std::max(max_rank_, rank);
    const at::Tensor first = by_token ? take(name + ".a", {in, rank}) : take(name + ".a", {rank, in});
    return LowRank{first, take(name + ".b", {rank, out}), static_cast<float>(scale->second)};
  };
  const auto own_rows = [&](const std::string& name) {
    OwnRows own;
    const auto rows = tensors.find(name + ".rows");
    if (rows == tensors.end()) {
      return own;
    }
    const bool whole = !tensors.contains(name + ".tokens");
    TORCH_CHECK_VALUE(rows->second.dim() == 2, "tensor ", name, ".rows must be a matrix");
    const int64_t count = whole ? spec.vocab_size : rows->second.size(0);
    own.rows = take(name + ".rows", {count, spec.hidden_size});
    if (whole) {
      return own;
    }
    own.tokens = take_as(name + ".tokens", {count}, at::kInt);
    own.row_of = at::full({spec.vocab_size}, -1, at::kInt);
    bytes_ += static_cast<int64_t>(own.row_of.nbytes());
    for (int32_t row = 0; row < count; ++row) {
      const int32_t token = own.tokens.const_data_ptr<int32_t>()[row];
      TORCH_CHECK_VALUE(token >= 0 && token < spec.vocab_size, name, ".tokens has ", token,
                        ", which is outside the vocabulary of ", spec.vocab_size);
      int32_t& place = own.row_of.mutable_data_ptr<int32_t>()[token];
      TORCH_CHECK_VALUE(place < 0, name, ".tokens has ", token, " twice");
      place = row;
    }
    return own;
  };
  embedding = {low_rank("embedding", spec.hidden_size, spec.vocab_size, /*by_token=*/true), own_rows("embedding")};
  head = {low_rank("head", spec.vocab_size, spec.hidden_size), own_rows("head")};
  if (head.own.defined() && head.own.rows.is_same(embedding.own.rows)) {  // tied: held once
    bytes_ -= static_cast<int64_t>(head.own.rows.nbytes());
  }
  for (int64_t i = 0; i < spec.layer_count(); ++i) {
    LayerAdapter& layer = layers.emplace_back();
    for (const LinearSlot& slot : linear_slots(spec, i)) {
      layer.*slot.update = low_rank(slot_of(i, slot.name), slot.out, slot.in);
    }
    if (!spec.layers[i].experts) {
      continue;
    }
    layer.router = low_rank(slot_of(i, "router"), spec.experts.count, spec.hidden_size);
    std::vector<ExpertAdapter> experts(spec.experts.count);
    int64_t rank = 0;
    for (int64_t expert = 0; expert < spec.experts.count; ++expert) {
      for (const ExpertSlot& slot : expert_slots(spec)) {
        LowRank& update = experts[expert].*slot.update;
        update = low_rank(slot_of(i, expert, slot.name), slot.out, slot.in);
        rank = std::max(rank, update.defined() ? update.rank() : 0);
      }
    }
    if (rank > 0) {
      layer.experts = std::move(experts);
      expert_rank_ = std::max(expert_rank_, rank);
    }
  }
  TORCH_CHECK_VALUE(taken == tensors.size(), "the adapter has ", tensors.size() - taken,
                    " tensors that belong to no layer of this model");
}

void check_fits(const Adapter& adapter, const Weights& weights) {
  TORCH_CHECK_VALUE(adapter.dtype() == weights.dtype(), "an adapter is ", scalar_type(adapter.dtype()),
                    " and its base ", scalar_type(weights.dtype()), "; load it in the type of the base");
  TORCH_CHECK_VALUE(adapter.layers.size() == weights.layers.size(), "an adapter has ", adapter.layers.size(),
                    " layers and its base ", weights.layers.size(), "; load it for this base");
  const int64_t vocab = weights.spec().vocab_size;
  const int64_t hidden = weights.spec().hidden_size;
  const auto are_like = [&](const OwnRows& own) {
    return !own.defined() || (own.rows.size(1) == hidden && (own.whole() ? own.rows : own.row_of).size(0) == vocab);
  };
  const LowRank& token = adapter.embedding.update;
  const LowRank& head = adapter.head.update;
  TORCH_CHECK_VALUE(are_like(adapter.embedding.own) && are_like(adapter.head.own) &&
                        (!token.defined() || (token.a.size(0) == vocab && token.b.size(1) == hidden)) &&
                        (!head.defined() || (head.a.size(1) == hidden && head.b.size(1) == vocab)),
                    "an adapter has another embedding or head than its base; load it for this base");
  for (size_t i = 0; i < adapter.layers.size(); ++i) {
    const LayerAdapter& updates = adapter.layers[i];
    const LayerWeights& layer = weights.layers[i];
    const auto check = [&](bool fits) {
      TORCH_CHECK_VALUE(fits, "layer ", i, " of an adapter has other shapes than its base; load it for this base");
    };
    const auto check_update = [&](const LowRank& update, const LinearWeights& linear) {
      check(!update.defined() || (update.a.size(1) == linear.matrix.in && update.b.size(1) == linear.matrix.out));
    };
    for (const LinearSlot& slot : linear_slots(weights.spec(), static_cast<int64_t>(i))) {
      check_update(updates.*slot.update, layer.*slot.weights);
    }
    check_update(updates.router, layer.router);
    check(updates.experts.empty() || updates.experts.size() == layer.experts.size());
    for (size_t expert = 0; expert < updates.experts.size(); ++expert) {
      for (const ExpertSlot& slot : expert_slots(weights.spec())) {
        check_update(updates.experts[expert].*slot.update, layer.experts[expert].*slot.weights);
      }
    }
  }
}

}  // namespace dlf
