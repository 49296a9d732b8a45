#pragma once

#include <span>

#include "engine/cpu/model.h"
#include "engine/hook.h"
#include "fusion/cpu/solver.h"

namespace dlf::cpu {

// Collects the logits of a sequence for its hook. `fused` has the results of its positions, `stride` weights apart;
// null without experts.
HookRows hook_rows(const FusionPlan& plan, std::span<Model> models, const Sequence& sequence, FusionResult* fused,
                   int64_t stride);

}  // namespace dlf::cpu
