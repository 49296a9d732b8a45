#include "ops/rope.h"

namespace dlf::ops {

void rope_and_cache(const RopeArgs& args, ThreadTeam& team) {
  const auto kernel = DLF_CPU_DISPATCH(rope_and_cache_kernel);
  team.parallel_for(args.rows, 4, [&](int64_t begin, int64_t end) { kernel(args, begin, end); });
}

}  // namespace dlf::ops
