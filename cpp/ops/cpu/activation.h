#pragma once

#include "ops/activation.h"
#include "support/cpu_capability.h"
#include "support/thread_team.h"

namespace dlf::ops {

void activate(const ActivationArgs& args, ThreadTeam& team);

// Elements [begin, end) of rows x size.
DLF_CPU_KERNEL(activation_kernel, const ActivationArgs& args, int64_t begin, int64_t end);

}  // namespace dlf::ops
