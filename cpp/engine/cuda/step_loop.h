#pragma once

#include <cstdint>
#include <memory>
#include <vector>

#include "engine/options.h"
#include "engine/plan.h"
#include "engine/step_loop.h"
#include "model/model_size.h"

namespace dlf::cuda {

inline constexpr int64_t kMaxBatch = 256;  // sequences

// The step loop on GPUs. Throws a ValueError or RuntimeError where it cannot run there, one that says how many bytes
// it would take and how many are free included; nothing is allocated then.
std::unique_ptr<StepLoop> make_step_loop(FusionPlan plan, const Models& models, EngineOptions options,
                                         const Adapters& adapters = {});

// What make_step_loop() takes, the weights included, for models that need not be loaded; it refuses what has not so
// much memory free. Scoring takes the KV cache of one more sequence while it runs. Allocates nothing.
std::vector<MemoryPart> plan_memory(const FusionPlan& plan, const std::vector<ModelSize>& models,
                                    const EngineOptions& options);

}  // namespace dlf::cuda
