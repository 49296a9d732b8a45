#include "ops/cpu/logits.h"

namespace dlf::ops {

void finish_logits(const LogitArgs& args, ThreadTeam& team) {
  const auto kernel = DLF_CPU_DISPATCH(logits_kernel);
  const int64_t count = static_cast<int64_t>(args.rows) * args.size;
  team.parallel_for(count, 4096, [&](int64_t begin, int64_t end) { kernel(args, begin, end); });
}

}  // namespace dlf::ops
