#pragma once

#include <memory>

#include "engine/step_loop.h"

namespace dlf::cpu {

// Makes a step loop on the CPU. A step that reads no prompt allocates nothing.
std::unique_ptr<StepLoop> make_step_loop(FusionPlan plan, const Models& models, EngineOptions options,
                                         const Adapters& adapters = {});

}  // namespace dlf::cpu
