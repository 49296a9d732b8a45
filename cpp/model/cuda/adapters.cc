#include "model/cuda/adapters.h"

#include <ATen/ops/empty.h>

#include <algorithm>
#include <array>
#include <cstring>
#include <map>

#include "support/cuda/runtime.h"

namespace dlf::cuda {

using ops::LoraUpdate;

DeviceAdapters::DeviceAdapters(const std::vector<std::shared_ptr<const Adapter>>& adapters,
                               const std::vector<int64_t>& lane_adapter, bool gated, int device)
    : lane_adapter_(lane_adapter), gated_(gated) {
  if (adapters.empty()) {
    return;
  }
  const auto put = [&](const at::Tensor& tensor) {
    matrices_.push_back(tensor.to(on_device(device).dtype(tensor.scalar_type()), /*non_blocking=*/false,
                                  /*copy=*/true));
    return matrices_.back().const_data_ptr();
  };
  std::map<const LowRank*, LoraUpdate> there;  // several lanes may share an adapter
  const auto update_of = [&](const LowRank& update) {
    if (!update.defined()) {
      return LoraUpdate{};
    }
    const auto found = there.find(&update);
    if (found != there.end()) {
      return found->second;
    }
    LoraUpdate on_device = update.update();
    on_device.a = put(update.a);
    on_device.b = put(update.b);
    max_rank_ = std::max(max_rank_, on_device.rank);
    return there[&update] = on_device;
  };
  const auto feed_forward = [&](const LayerAdapter& w) {
    return gated ? std::vector{&w.gate, &w.up} : std::vector{&w.up};
  };
  std::vector<LoraUpdate> table;
  for (size_t layer = 0; layer < adapters[0]->layers.size(); ++layer) {
    for (int input = 0; input < kInputs; ++input) {
      for (const int64_t index : lane_adapter) {
        std::array<LoraUpdate, kMostUpdates> of_lane = {};
        if (index >= 0) {
          const LayerAdapter& w = adapters[index]->layers[layer];
          const std::vector<const LowRank*> products = input == attention ? std::vector{&w.q, &w.k, &w.v}
                                                       : input == output  ? std::vector{&w.o}
                                                       : input == mlp     ? feed_forward(w)
                                                                          : std::vector{&w.down};
          std::transform(products.begin(), products.end(), of_lane.begin(),
                         [&](const LowRank* product) { return update_of(*product); });
        }
        table.insert(table.end(), of_lane.begin(), of_lane.end());
      }
    }
  }
  const auto bytes = static_cast<int64_t>(table.size() * sizeof(LoraUpdate));
  const at::Tensor host = at::empty({bytes}, at::kByte);
  std::memcpy(host.mutable_data_ptr(), table.data(), bytes);
  tables_ = host.to(on_device(device).dtype(at::kByte), /*non_blocking=*/false, /*copy=*/true);
}

const LoraUpdate* DeviceAdapters::updates(int64_t layer, Input input) const {
  const auto lanes = static_cast<int64_t>(lane_adapter_.size());
  return static_cast<const LoraUpdate*>(tables_.const_data_ptr()) + (layer * kInputs + input) * lanes * kMostUpdates;
}

}  // namespace dlf::cuda
