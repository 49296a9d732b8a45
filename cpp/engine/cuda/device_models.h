#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <functional>
#include <memory>
#include <vector>

#include "engine/cuda/sequences.h"
#include "engine/options.h"
#include "engine/plan.h"
#include "fusion/cuda/solver.h"
#include "model/cuda/decoder.h"
#include "support/cuda/runtime.h"

namespace dlf::cuda {

// A model with its stream, and its copies of what lies on the large model's device.
struct DeviceModel {
  std::unique_ptr<Queue> queue;
  std::unique_ptr<Decoder> decoder;
  std::unique_ptr<Event> ready;  // its logits are there
  at::Tensor tokens, positions;  // the decoder's, or on another device what it copies before it runs
  at::Tensor logits;             // likewise: what the solver reads
  bool remote = false;
};

// Which tokens of each sequence a pass of a model reads, as Decoder::decode counts them.
struct Pass {
  int first;
  int count;  // 0: it does not run
};

// The models of an engine, the small ones on streams of their own beside the large one's.
class DeviceModels {
 public:
  DeviceModels(const FusionPlan& plan, const Models& weights, const EngineOptions& options, const Adapters& adapters);

  std::vector<DeviceModel>& all() { return models_; }
  Queue& main() { return *models_[large_].queue; }  // where everything else happens, too
  void synchronize();

  // Queues a pass of each model over tokens of the first `batch` sequences.
  void forward(int batch, const std::function<Pass(size_t)>& pass_of);

  // A lane's logits, on the large model's device; those of its first row are at the beginning.
  Logits logits(int64_t lane);
  // Puts the logits after the last token that was accepted where those of a sequence's last token are.
  void keep_logits(int batch, const int32_t* active, const int32_t* accepted);

  std::vector<ModelRows> rows();

 private:
  const FusionPlan& plan_;
  size_t large_;
  std::vector<DeviceModel> models_;
  std::unique_ptr<Event> begun_;  // what comes before on the main stream
};

}  // namespace dlf::cuda
