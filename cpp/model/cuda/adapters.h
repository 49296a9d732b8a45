#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <memory>
#include <vector>

#include "model/adapter.h"
#include "ops/cuda/lora.h"

namespace dlf::cuda {

// The adapters of one model's lanes in the memory of one device. For each layer and each input of its linear layers,
// the kernel reads a table by lane.
class DeviceAdapters {
 public:
  enum Input { attention, output, mlp, down };  // of q, k and v; of o; of gate and up, or up alone; of down
  static constexpr int kInputs = 4;

  // `lane_adapter` has the index of each lane's adapter, or −1. Copies on the current stream.
  DeviceAdapters(const std::vector<std::shared_ptr<const Adapter>>& adapters, const std::vector<int64_t>& lane_adapter,
                 bool gated, int device);

  bool empty() const { return !tables_.defined(); }
  int max_rank() const { return max_rank_; }
  // Whether the lane has an adapter.
  bool adapts(int lane) const { return !empty() && lane_adapter_[lane] >= 0; }
  const ops::LoraUpdate* updates(int64_t layer, Input input) const;
  // Number of linear layers that read the input.
  int products(Input input) const { return input == attention ? 3 : input == mlp && gated_ ? 2 : 1; }

 private:
  std::vector<int64_t> lane_adapter_;
  bool gated_;
  std::vector<at::Tensor> matrices_;
  at::Tensor tables_;  // bytes of LoraUpdate [layers, kInputs, lanes, kMostUpdates]
  int max_rank_ = 0;
};

}  // namespace dlf::cuda
