#pragma once

#include "ops/rope.h"
#include "support/cpu_capability.h"
#include "support/thread_team.h"

namespace dlf::ops {

// Writes the cache as cpu/cache_layout.h lays it out.
void rope_and_cache(const RopeArgs& args, ThreadTeam& team);

// Rows [begin, end), whose heads are already normalised.
DLF_CPU_KERNEL(rope_and_cache_kernel, const RopeArgs& args, int64_t begin, int64_t end);

}  // namespace dlf::ops
