#pragma once

#include "ops/logits.h"
#include "support/cpu_capability.h"
#include "support/thread_team.h"

namespace dlf::ops {

void finish_logits(const LogitArgs& args, ThreadTeam& team);

// Elements [begin, end) of rows x size.
DLF_CPU_KERNEL(logits_kernel, const LogitArgs& args, int64_t begin, int64_t end);

}  // namespace dlf::ops
