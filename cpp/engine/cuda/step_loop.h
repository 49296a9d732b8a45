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

// Makes a step loop on GPUs. Throws a ValueError or RuntimeError if it cannot run there; if memory is short, the error
// gives the bytes needed and free. Nothing is allocated then.
std::unique_ptr<StepLoop> make_step_loop(FusionPlan plan, const Models& models, EngineOptions options,
                                         const Adapters& adapters = {});

// Returns the memory that make_step_loop() takes, weights included; the models need not be loaded. If less is free,
// make_step_loop() refuses. Scoring takes the KV cache of one more sequence while it runs. Allocates nothing.
std::vector<MemoryPart> plan_memory(const FusionPlan& plan, const std::vector<ModelSize>& models,
                                    const EngineOptions& options);

}  // namespace dlf::cuda
