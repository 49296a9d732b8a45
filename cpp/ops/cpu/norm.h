#pragma once

#include "ops/norm.h"
#include "support/cpu_capability.h"
#include "support/thread_team.h"

namespace dlf::ops {

void rms_norm(const NormArgs& args, ThreadTeam& team);

// Rows [begin, end).
DLF_CPU_KERNEL(rms_norm_kernel, const NormArgs& args, int64_t begin, int64_t end);

}  // namespace dlf::ops
