#pragma once

#include "ops/norm.h"
#include "support/cpu_capability.h"
#include "support/thread_team.h"

namespace dlf::ops {

void norm(const NormArgs& args, ThreadTeam& team);
void add_norm(const AddNormArgs& args, ThreadTeam& team);

// Rows [begin, end).
DLF_CPU_KERNEL(norm_kernel, const NormArgs& args, int64_t begin, int64_t end);
DLF_CPU_KERNEL(add_norm_kernel, const AddNormArgs& args, int64_t begin, int64_t end);

}  // namespace dlf::ops
