#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <memory>
#include <vector>

#include "model/adapter.h"
#include "ops/cuda/lora.h"

namespace dlf::cuda {

// The adapters of one model's lanes in the memory of one device. For each layer and each input of its linear layers,
// the kernel reads a table by lane; so it does for the embedding and the head.
class DeviceAdapters {
 public:
  // Of q, k and v; of o; of gate and up, or up alone; of down; of the router.
  enum Input { attention, output, mlp, down, router };
  static constexpr int kInputs = 5;

  // `lane_adapter` has the index of each lane's adapter, or −1. Copies on the current stream.
  DeviceAdapters(const std::vector<std::shared_ptr<const Adapter>>& adapters, const std::vector<int64_t>& lane_adapter,
                 bool gated, int device);

  bool empty() const { return !tables_.defined(); }
  int max_rank() const { return max_rank_; }
  int lanes() const { return static_cast<int>(lane_adapter_.size()); }
  // Whether the lane has an adapter.
  bool adapts(int lane) const { return !empty() && lane_adapter_[lane] >= 0; }
  // Null where no lane has any, like the others.
  const ops::LoraUpdate* updates(int64_t layer, Input input) const { return table(layer * kInputs + input); }
  const ops::LoraUpdate* embedding() const { return table(std::ssize(any_) - 2); }
  const ops::LoraUpdate* head() const { return table(std::ssize(any_) - 1); }
  const ops::LoraUpdate* experts(int64_t layer) const;  // [lanes, experts, kExpertUpdates]
  int expert_rank() const { return expert_rank_; }
  const ops::OwnEmbedding* own_embedding() const;
  const ops::OwnLogits* own_logits() const;
  int most_own_logits() const { return most_own_logits_; }  // rows of any lane
  // Whether the lane has a whole head of its own.
  bool replaces_head(int lane) const { return !empty() && replaces_head_[lane]; }
  // Number of linear layers that read the input.
  int products(Input input) const { return input == attention ? 3 : input == mlp && gated_ ? 2 : 1; }

 private:
  const ops::LoraUpdate* table(int64_t index) const;

  std::vector<int64_t> lane_adapter_;
  bool gated_;
  std::vector<at::Tensor> matrices_;
  at::Tensor tables_;      // bytes of LoraUpdate [layers * kInputs + 2, lanes, kMostUpdates]
  std::vector<bool> any_;  // whether a lane has an update, of each table
  int max_rank_ = 0;
  std::vector<at::Tensor> expert_tables_;  // of each layer, undefined without updates of experts
  int expert_rank_ = 0;
  at::Tensor own_embedding_, own_logits_;  // bytes [lanes], or undefined
  int most_own_logits_ = 0;
  std::vector<bool> replaces_head_;
};

}  // namespace dlf::cuda
