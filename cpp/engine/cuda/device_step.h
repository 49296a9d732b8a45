#pragma once

#include <ATen/core/Tensor.h>

#include <compare>
#include <cstdint>
#include <functional>
#include <map>
#include <memory>

#include "engine/cuda/device_models.h"
#include "engine/cuda/hook_rows.h"
#include "engine/cuda/sequence_memory.h"
#include "engine/drafting/step_draft_policy.h"
#include "engine/options.h"
#include "engine/plan.h"
#include "sampling/cuda/sampler_state.h"
#include "support/cuda/runtime.h"

namespace dlf::cuda {

// One step of all sequences: the models, the sampler and the memory that it uses, and the graphs that replay it.
class DeviceStep {
 public:
  DeviceStep(const FusionPlan& plan, const Models& models, const EngineOptions& options, const Adapters& adapters);

  // A step that drafts may come in two parts, so that the host can send the masks of drafted tokens between them: the
  // first shows the tokens before all models read them, the second chooses among them.
  enum class Part { whole, drafts, verifies };

  // Kind of a step: each has a graph of its own. The numbers of a rule lie in device memory, but the kernels that solve
  // the rules are part of the graph.
  struct Kind {
    int batch = 0;  // works on the first `batch` slots
    StepDraft draft;
    Part part = Part::whole;
    uint32_t solvers = 0;     // SolverKernels of their rules
    bool traced = false;      // whether some sequence asks for the large model's own tokens
    bool shown = false;       // whether the host sees the logits: such a step has no graph
    bool holds = false;       // whether the small models read nothing
    bool catches_up = false;  // no step: the small models read what they were held back from

    auto operator<=>(const Kind&) const = default;
  };

  // Launches a step: its graph, or kernel by kernel while its kind has none. Returns whether it takes as long as later
  // steps of its kind. A step that is shown calls show() when the fused logits are queued.
  bool launch(const Kind& kind, const std::function<void()>& show = {});

  // Launches a pass of the small models over the last `unread` tokens of the first `batch` sequences, which they have
  // not read; at most models().small_tokens(batch). Returns what launch() does.
  bool catch_up(int batch, int unread);

  // Decides the gates that read the large model's logits alone, for a step that holds. The host waits for the answer:
  // whether one is open.
  bool opens(int batch);

  // Passes that the small models in use run in a step of this kind.
  static int small_passes(const Kind& kind, int models);

  // Captures a graph for the kind of step that ran most often without one, at least `least_runs` times. This takes the
  // host milliseconds, in which the device works on earlier launches. Returns whether there was such a kind.
  bool capture(int64_t least_runs);

  bool uses_graph(const Kind& kind) const;

  DeviceModels& models() { return models_; }
  const DeviceModels& models() const { return models_; }
  FusedRows fused();
  SamplerState& sampler() { return *sampler_; }
  const SequenceMemory& memory() const { return *memory_; }
  const SequenceTable& table() const { return memory_->table(); }
  Queue& main() { return models_.main(); }

 private:
  struct Launches {
    std::unique_ptr<Graph> graph;
    int64_t runs = 0;  // without a graph
    bool fails = false;
  };

  void enqueue(const Kind& kind, const std::function<void()>& show);
  void draft_tokens(const Kind& kind);
  void verify(const Kind& kind);
  void trace(const Kind& kind, int count, const int32_t* active);
  FusionArgs fusion_args(int batch, int count, const int32_t* active);
  SamplerState::Rows fuse(const Kind& kind, int count, const int32_t* active);

  const FusionPlan& plan_;
  bool graph_;
  DeviceModels models_;
  std::unique_ptr<SamplerState> sampler_;
  at::Tensor fused_, fusions_;
  at::Tensor opened_;  // pinned: FusionArgs::opened
  std::unique_ptr<SequenceMemory> memory_;
  std::map<Kind, Launches> kinds_;
};

}  // namespace dlf::cuda
