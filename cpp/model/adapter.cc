#include "model/adapter.h"

#include <c10/util/Exception.h>

#include <algorithm>

#include "model/slots.h"
#include "support/scalar_type.h"

namespace dlf {

Adapter::Adapter(const ModelSpec& spec, const TensorMap& tensors,
                 const std::unordered_map<std::string, double>& scales) {
  TORCH_CHECK_VALUE(!tensors.empty(), "the adapter has no tensors");
  const at::ScalarType type = tensors.begin()->second.scalar_type();
  TORCH_CHECK_VALUE(type == at::kFloat || type == at::kBFloat16 || type == at::kHalf,
                    "an adapter must be float32, bfloat16 or float16, not ", type);
  dtype_ = type == at::kFloat ? DType::float32 : type == at::kBFloat16 ? DType::bfloat16 : DType::float16;
  size_t taken = 0;
  const auto take = [&](const std::string& name, at::IntArrayRef shape) {
    const auto found = tensors.find(name);
    TORCH_CHECK_VALUE(found != tensors.end(), "tensor ", name, " is missing");
    const at::Tensor& tensor = found->second;
    TORCH_CHECK_VALUE(tensor.scalar_type() == type && tensor.sizes() == shape && tensor.is_contiguous(), "tensor ",
                      name, " is ", tensor.scalar_type(), " ", tensor.sizes(), "; this layer takes ", type, " ", shape);
    bytes_ += static_cast<int64_t>(tensor.nbytes());
    ++taken;
    return tensor;
  };
  const auto low_rank = [&](const std::string& name, int64_t out, int64_t in) {
    const auto a = tensors.find(name + ".a");
    if (a == tensors.end()) {
      return LowRank();
    }
    TORCH_CHECK_VALUE(a->second.dim() == 2 && a->second.size(0) >= 1, "tensor ", name, ".a must be [rank, ", in, "]");
    const int64_t rank = a->second.size(0);
    const auto scale = scales.find(name);
    TORCH_CHECK_VALUE(scale != scales.end(), "the adapter has no scale for ", name);
    max_rank_ = std::max(max_rank_, rank);
    return LowRank{take(name + ".a", {rank, in}), take(name + ".b", {rank, out}), static_cast<float>(scale->second)};
  };
  for (int64_t i = 0; i < spec.layer_count(); ++i) {
    LayerAdapter& layer = layers.emplace_back();
    for (const LinearSlot& slot : linear_slots(spec, i)) {
      layer.*slot.update = low_rank(slot_of(i, slot.name), slot.out, slot.in);
    }
  }
  TORCH_CHECK_VALUE(taken == tensors.size(), "the adapter has ", tensors.size() - taken,
                    " tensors that belong to no linear layer of this model");
}

void check_fits(const Adapter& adapter, const Weights& weights) {
  TORCH_CHECK_VALUE(adapter.dtype() == weights.dtype(), "an adapter is ", scalar_type(adapter.dtype()),
                    " and its base ", scalar_type(weights.dtype()), "; load it in the type of the base");
  TORCH_CHECK_VALUE(adapter.layers.size() == weights.layers.size(), "an adapter has ", adapter.layers.size(),
                    " layers and its base ", weights.layers.size(), "; load it for this base");
  for (size_t i = 0; i < adapter.layers.size(); ++i) {
    const LayerAdapter& updates = adapter.layers[i];
    const LayerWeights& layer = weights.layers[i];
    for (const LinearSlot& slot : linear_slots(weights.spec(), static_cast<int64_t>(i))) {
      const LowRank& update = updates.*slot.update;
      const ops::Matrix& matrix = (layer.*slot.weights).matrix;
      TORCH_CHECK_VALUE(!update.defined() || (update.a.size(1) == matrix.in && update.b.size(1) == matrix.out),
                        "layer ", i, " of an adapter has other shapes than its base; load it for this base");
    }
  }
}

}  // namespace dlf
