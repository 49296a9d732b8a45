#pragma once

#include <ATen/core/Tensor.h>

#include <map>
#include <memory>
#include <utility>

#include "engine/cuda/device_models.h"
#include "engine/cuda/sequence_memory.h"
#include "engine/cuda/step_loop.h"
#include "engine/drafting/graph_draft_policy.h"
#include "engine/plan.h"
#include "sampling/cuda/sampler_state.h"
#include "support/cuda/runtime.h"

namespace dlf::cuda {

// One step of all sequences: the models, the sampler and the memory that it runs on, and the graphs that replay it.
class DeviceStep {
 public:
  DeviceStep(const FusionPlan& plan, const Models& models, const CudaOptions& options, const Adapters& adapters);

  // Puts a step of the first `batch` sequences on its way: as a graph, or as long as its kind has none kernel by
  // kernel. Returns whether it takes as long as others of its kind will.
  bool launch(int batch, const StepDraft& draft);

  // Captures a graph for the kind of step that ran most often without, where one ran so often. Takes the host
  // milliseconds, in which the device has what was launched before. Returns whether there was one.
  bool capture(int64_t least_runs);

  bool uses_graph(int batch, const StepDraft& draft) const;

  DeviceModels& models() { return models_; }
  SamplerState& sampler() { return *sampler_; }
  const SequenceMemory& memory() const { return *memory_; }
  SequenceTable table() { return memory_->table(models_.rows()); }
  Queue& main() { return models_.main(); }

 private:
  struct Kind {
    std::unique_ptr<Graph> graph;
    int64_t runs = 0;  // without
    bool fails = false;
  };

  void enqueue(int batch, const StepDraft& draft);
  void draft_tokens(int batch, const StepDraft& draft);
  void verify(int batch, const StepDraft& draft);
  SamplerState::Rows fuse(int batch, int count, const int32_t* active, const uint32_t* chosen);
  SequenceMemory::Sampled sampled() const;

  const FusionPlan& plan_;
  bool graph_;
  int max_context_;
  DeviceModels models_;
  std::unique_ptr<SamplerState> sampler_;
  at::Tensor fused_, fusions_;
  std::unique_ptr<SequenceMemory> memory_;
  std::map<std::pair<int, StepDraft>, Kind> kinds_;  // by batch
};

}  // namespace dlf::cuda
