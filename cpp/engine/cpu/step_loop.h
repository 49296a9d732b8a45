#pragma once

#include <memory>

#include "engine/step_loop.h"

namespace dlf::cpu {

// The step loop on the processor. A step in which no prompt is read allocates nothing.
std::unique_ptr<StepLoop> make_step_loop(FusionPlan plan, const Models& models, EngineOptions options,
                                         const Adapters& adapters = {});

}  // namespace dlf::cpu
