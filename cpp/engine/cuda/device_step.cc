#include "engine/cuda/device_step.h"

#include <ATen/ops/zeros.h>
#include <c10/util/Exception.h>

#include <algorithm>
#include <vector>

#include "engine/cuda/memory_plan.h"
#include "engine/cuda/prompt_lookup.h"
#include "engine/cuda/sequences.h"
#include "fusion/cuda/solver.h"

namespace dlf::cuda {

DeviceStep::DeviceStep(const FusionPlan& plan, const Models& models, const EngineOptions& options,
                       const Adapters& adapters)
    : plan_(plan), graph_(options.graph), models_(plan, models, options, adapters) {
  const int max_tokens = most_tokens(options);
  const int device = main().device();
  main().run([&] {
    sampler_ = std::make_unique<SamplerState>(device, sampler_size(plan_, options));
    if (!plan_.experts.empty()) {
      fused_ = at::zeros({max_tokens, plan_.vocab}, on_device(device).dtype(at::kFloat));
      fusions_ =
          at::zeros({static_cast<int64_t>(max_tokens * sizeof(FusionRecord))}, on_device(device).dtype(at::kByte));
    }
  });
  opened_ = pinned({1}, at::kInt);
  const auto experts = static_cast<int>(plan_.experts.size());
  const auto* fusions = experts == 0 ? nullptr : static_cast<const FusionRecord*>(fusions_.const_data_ptr());
  const std::vector<ModelRows> rows = models_.rows();
  const SequenceMemory::Parts parts = {rows, *sampler_, fusions, experts, max_tokens, kTopCapacity};
  memory_ = std::make_unique<SequenceMemory>(options, parts, main());
}

bool DeviceStep::launch(const Kind& kind, const std::function<void()>& show) {
  Launches& launches = kinds_[kind];
  if (launches.graph != nullptr) {
    launches.graph->replay(main());
    return true;
  }
  enqueue(kind, show);  // the first run also loads kernels and libraries before the capture
  ++launches.runs;
  // Plain steps in a row take about as long without a graph, and one must be timed before anything is drafted.
  return launches.runs > 1 && (!graph_ || launches.fails || kind.draft.count == 0);
}

bool DeviceStep::catch_up(int batch, int unread) {
  const int rows = models_.small_tokens(batch);
  TORCH_INTERNAL_ASSERT(unread <= rows);
  feed_unread({table(), sampler_->args(batch), batch, unread, rows}, main().stream());
  Kind kind;
  kind.batch = batch;
  kind.catches_up = true;
  return launch(kind);
}

bool DeviceStep::opens(int batch) {
  auto* opened = opened_.mutable_data_ptr<int32_t>();
  *opened = 0;
  FusionArgs args = fusion_args(batch, 1, table().active);
  args.opened = opened;
  close_gates(args, main().stream());
  main().synchronize();
  return *opened != 0;
}

int DeviceStep::small_passes(const Kind& kind, int models) {
  const bool lane_drafts = kind.draft.count > 0 && kind.draft.drafter != kPromptLookup;
  return (kind.holds ? 0 : models) + (lane_drafts ? kind.draft.count : 0);
}

bool DeviceStep::capture(int64_t least_runs) {
  const auto wanted = [](const auto& entry) {
    const auto& [kind, found] = entry;
    return found.graph != nullptr || found.fails || kind.shown ? 0 : found.runs;
  };
  const auto most = std::max_element(kinds_.begin(), kinds_.end(),
                                     [&](const auto& one, const auto& other) { return wanted(one) < wanted(other); });
  if (!graph_ || most == kinds_.end() || wanted(*most) < std::max<int64_t>(least_runs, 1)) {
    return false;
  }
  auto& [kind, launches] = *most;
  auto graph = std::make_unique<Graph>();
  try {
    graph->capture(main(), [&] { enqueue(kind, {}); });
    launches.graph = std::move(graph);
  } catch (const std::exception& error) {  // perhaps there is no memory for it; any other failure comes again in a step
    launches.fails = true;
    TORCH_WARN("a step could not be captured as a graph and runs without: ", error.what());
  }
  return true;
}

bool DeviceStep::uses_graph(const Kind& kind) const {
  const auto found = kinds_.find(kind);
  return found != kinds_.end() && found->second.graph != nullptr;
}

// Queues one step: the logits of the last forward pass -> solve and fuse -> sample -> every model once. If it drafts,
// after sample: draft tokens -> every model once, over all of them -> solve and fuse -> sample -> accept. If it holds,
// the small models run beforehand, in catch_up(), where a gate is open.
void DeviceStep::enqueue(const Kind& kind, const std::function<void()>& show) {
  const int batch = kind.batch;
  if (kind.catches_up) {
    const int tokens = models_.small_tokens(batch);
    return models_.forward(
        batch, [&](size_t model) { return Pass{0, models_.is_small(model) ? tokens : 0, /*first_logits=*/true}; });
  }
  if (kind.part == Part::verifies) {
    return verify(kind);
  }
  const StepDraft& draft = kind.draft;
  const SamplerState::Rows rows = fuse(kind, 1, table().active);
  if (kind.shown) {
    show();
  }
  trace(kind, 1, table().active);
  sampler_->sample(rows, batch, main());
  memory_->advance(batch, 0, kind.traced, /*ends_step=*/draft.count == 0, main().stream());
  if (draft.count == 0) {
    return models_.forward(batch, [&](size_t model) { return Pass{0, kind.holds && models_.is_small(model) ? 0 : 1}; });
  }
  draft_tokens(kind);
  if (kind.part == Part::whole) {
    verify(kind);
  }
}

// Draws each drafted token from the drafter's logits, with the random number of its position. In the end every model
// has read all tokens.
void DeviceStep::draft_tokens(const Kind& kind) {
  const int batch = kind.batch;
  const StepDraft& draft = kind.draft;
  const Stream stream = main().stream();
  const DraftTable& drafts = memory_->draft();
  const auto show = [&] {
    if (kind.part == Part::drafts) {
      memory_->show_draft(batch, draft.count, stream);
    }
  };
  begin_draft(table(), drafts, batch, draft.count, stream);
  if (draft.drafter == kPromptLookup) {
    look_up({sampler_->args(batch), table().active, draft.count, drafts.tokens}, stream);
    feed_draft(table(), drafts, nullptr, batch, 0, draft.count, stream);
    show();
    return models_.forward(batch, [&](size_t) { return Pass{0, draft.count + 1}; });
  }
  const auto drafter = static_cast<size_t>(plan_.lane_model[draft.drafter]);
  const Logits logits = models_.logits(draft.drafter);
  for (int i = 0; i < draft.count; ++i) {
    models_.forward(batch, [&](size_t model) { return Pass{i, model == drafter ? 1 : 0}; });
    sampler_->draft({logits.data + i * batch * logits.stride, logits.stride, drafts.wanted + i * batch}, batch, i,
                    main());
    feed_draft(table(), drafts, sampler_->records(), batch, i, 1, stream);
  }
  show();
  models_.forward(batch,
                  [&](size_t model) { return model == drafter ? Pass{draft.count, 1} : Pass{0, draft.count + 1}; });
}

// Samples all positions, and accepts the drafted tokens that agree.
void DeviceStep::verify(const Kind& kind) {
  const int batch = kind.batch;
  const StepDraft& draft = kind.draft;
  const Stream stream = main().stream();
  const DraftTable& drafts = memory_->draft();
  const SamplerState::Rows rows = fuse(kind, draft.count, drafts.wanted);
  trace(kind, draft.count, drafts.wanted);
  sampler_->verify(rows, batch, draft.count, main());
  memory_->advance(batch, draft.count, kind.traced, /*ends_step=*/true, stream);
  sampler_->append_drafted(drafts.accepted, batch, main());
  models_.keep_logits(batch, table().active, drafts.accepted);
}

FusedRows DeviceStep::fused() {
  if (plan_.experts.empty()) {
    return {};
  }
  return {fused_.mutable_data_ptr<float>(), plan_.vocab, static_cast<FusionRecord*>(fusions_.mutable_data_ptr())};
}

// Draws what the large model alone would choose, with the random numbers of the next tokens.
void DeviceStep::trace(const Kind& kind, int count, const int32_t* active) {
  if (!kind.traced) {
    return;
  }
  const Logits large = models_.logits(0);
  sampler_->verify({large.data, large.stride, active}, kind.batch, count, main());
  keep_own_tokens(sampler_->records(), memory_->own_tokens(), count * kind.batch, main().stream());
}

// The logits of `count` positions of each sequence, and where they are fused.
FusionArgs DeviceStep::fusion_args(int batch, int count, const int32_t* active) {
  FusionArgs args = {};
  args.expert_count = static_cast<int>(plan_.experts.size());
  args.large = models_.logits(0);
  for (size_t t = 0; t < plan_.experts.size(); ++t) {
    args.experts[t] = models_.logits(plan_.experts[t].expert);
    args.bases[t] = models_.logits(plan_.experts[t].base);
  }
  args.fused = fused_.mutable_data_ptr<float>();
  args.fused_stride = plan_.vocab;
  args.records = static_cast<FusionRecord*>(fusions_.mutable_data_ptr());
  args.active = active;
  args.rules = table().rules;
  args.rule_count = batch;
  args.rows = count * batch;
  args.vocab = plan_.vocab;
  return args;
}

// Fuses the logits, and returns those to sample `count` tokens of each sequence from. Where a step holds, opens() has
// decided the gates.
SamplerState::Rows DeviceStep::fuse(const Kind& kind, int count, const int32_t* active) {
  if (plan_.experts.empty()) {
    const Logits large = models_.logits(0);
    return {large.data, large.stride, active, /*masked=*/true};
  }
  FusionArgs args = fusion_args(kind.batch, count, active);
  args.kernels = kind.solvers & ~(kind.holds ? kGateKernel : 0U);
  cuda::solve(args, main().stream());
  return {args.fused, args.fused_stride, active, /*masked=*/true};
}

}  // namespace dlf::cuda
