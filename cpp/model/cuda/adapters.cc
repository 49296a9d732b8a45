#include "model/cuda/adapters.h"

#include <ATen/ops/empty.h>

#include <algorithm>
#include <array>
#include <cstring>
#include <map>

#include "ops/cuda/experts.h"
#include "support/cuda/runtime.h"

namespace dlf::cuda {

using ops::LoraUpdate;

namespace {

// Bytes of a table for kernels.
template <typename T>
at::Tensor to_device(const std::vector<T>& table, int device) {
  const auto bytes = static_cast<int64_t>(table.size() * sizeof(T));
  const at::Tensor host = at::empty({bytes}, at::kByte);
  std::memcpy(host.mutable_data_ptr(), table.data(), bytes);
  return host.to(on_device(device).dtype(at::kByte), /*non_blocking=*/false, /*copy=*/true);
}

}  // namespace

DeviceAdapters::DeviceAdapters(const std::vector<std::shared_ptr<const Adapter>>& adapters,
                               const std::vector<int64_t>& lane_adapter, bool gated, int device)
    : lane_adapter_(lane_adapter), gated_(gated) {
  if (adapters.empty()) {
    return;
  }
  std::map<const void*, const void*> there;  // several lanes may share an adapter
  const auto put = [&](const at::Tensor& tensor) {
    const void*& place = there[tensor.const_data_ptr()];
    if (place == nullptr) {
      matrices_.push_back(tensor.to(on_device(device).dtype(tensor.scalar_type()), /*non_blocking=*/false,
                                    /*copy=*/true));
      place = matrices_.back().const_data_ptr();
    }
    return place;
  };
  const auto update_of = [&](const LowRank& update) {
    LoraUpdate on_device = update.update();
    if (update.defined()) {
      on_device.a = put(update.a);
      on_device.b = put(update.b);
      max_rank_ = std::max(max_rank_, on_device.rank);
    }
    return on_device;
  };
  std::vector<LoraUpdate> table;
  // Adds a table of the updates of up to kMostUpdates products.
  const auto add = [&](const auto& products_of) {
    any_.push_back(false);
    for (const int64_t index : lane_adapter) {
      std::array<LoraUpdate, kMostUpdates> of_lane = {};
      if (index >= 0) {
        const std::vector<const LowRank*> products = products_of(*adapters[index]);
        std::transform(products.begin(), products.end(), of_lane.begin(),
                       [&](const LowRank* product) { return update_of(*product); });
        any_.back() = any_.back() || std::any_of(products.begin(), products.end(),
                                                 [](const LowRank* product) { return product->defined(); });
      }
      table.insert(table.end(), of_lane.begin(), of_lane.end());
    }
  };
  const auto products = [&](const LayerAdapter& w, int input) -> std::vector<const LowRank*> {
    switch (input) {
      case attention:
        return {&w.q, &w.k, &w.v};
      case output:
        return {&w.o};
      case mlp:
        return gated ? std::vector{&w.gate, &w.up} : std::vector{&w.up};
      case router:
        return {&w.router};
      default:
        return {&w.down};
    }
  };
  for (size_t layer = 0; layer < adapters[0]->layers.size(); ++layer) {
    for (int input = 0; input < kInputs; ++input) {
      add([&](const Adapter& adapter) { return products(adapter.layers[layer], input); });
    }
  }
  add([](const Adapter& adapter) { return std::vector{&adapter.embedding.update}; });
  add([](const Adapter& adapter) { return std::vector{&adapter.head.update}; });
  tables_ = to_device(table, device);

  for (size_t layer = 0; layer < adapters[0]->layers.size(); ++layer) {
    size_t count = 0;
    for (const std::shared_ptr<const Adapter>& adapter : adapters) {
      count = std::max(count, adapter->layers[layer].experts.size());
      expert_rank_ = std::max(expert_rank_, static_cast<int>(adapter->expert_rank()));
    }
    std::vector<LoraUpdate> of_layer;
    for (size_t lane = 0; count > 0 && lane < lane_adapter.size(); ++lane) {
      of_layer.resize(lane * count * kExpertUpdates);
      if (lane_adapter[lane] >= 0) {
        for (const ExpertAdapter& expert : adapters[lane_adapter[lane]]->layers[layer].experts) {
          for (const LowRank* update : {&expert.gate, &expert.up, &expert.down}) {
            of_layer.push_back(update_of(*update));
          }
        }
      }
    }
    of_layer.resize(lane_adapter.size() * count * kExpertUpdates);
    expert_tables_.push_back(count > 0 ? to_device(of_layer, device) : at::Tensor());
  }

  std::vector<ops::OwnEmbedding> own_embedding;
  std::vector<ops::OwnLogits> own_logits;
  bool has_embedding = false;
  for (const int64_t index : lane_adapter) {
    ops::OwnEmbedding& tokens = own_embedding.emplace_back();
    ops::OwnLogits& logits = own_logits.emplace_back();
    replaces_head_.push_back(index >= 0 && adapters[index]->head.own.whole());
    if (index >= 0 && adapters[index]->embedding.own.defined()) {
      const OwnRows& own = adapters[index]->embedding.own;
      const void* row_of = own.whole() ? nullptr : put(own.row_of);
      tokens = {put(own.rows), static_cast<const int32_t*>(row_of)};
      has_embedding = true;
    }
    if (index >= 0 && adapters[index]->head.own.defined()) {
      const OwnRows& own = adapters[index]->head.own;
      const void* numbers = own.whole() ? nullptr : put(own.tokens);
      logits = {put(own.rows), static_cast<const int32_t*>(numbers), static_cast<int>(own.rows.size(0))};
      most_own_logits_ = std::max(most_own_logits_, logits.count);
    }
  }
  own_embedding_ = has_embedding ? to_device(own_embedding, device) : at::Tensor();
  own_logits_ = most_own_logits_ > 0 ? to_device(own_logits, device) : at::Tensor();
}

const LoraUpdate* DeviceAdapters::table(int64_t index) const {
  return empty() || !any_[index]
             ? nullptr
             : static_cast<const LoraUpdate*>(tables_.const_data_ptr()) + index * lanes() * kMostUpdates;
}

const LoraUpdate* DeviceAdapters::experts(int64_t layer) const {
  return empty() || !expert_tables_[layer].defined()
             ? nullptr
             : static_cast<const LoraUpdate*>(expert_tables_[layer].const_data_ptr());
}

const ops::OwnEmbedding* DeviceAdapters::own_embedding() const {
  return own_embedding_.defined() ? static_cast<const ops::OwnEmbedding*>(own_embedding_.const_data_ptr()) : nullptr;
}

const ops::OwnLogits* DeviceAdapters::own_logits() const {
  return own_logits_.defined() ? static_cast<const ops::OwnLogits*>(own_logits_.const_data_ptr()) : nullptr;
}

}  // namespace dlf::cuda
