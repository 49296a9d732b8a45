#include "ops/attention.h"

namespace dlf::ops {

void attention(const AttentionArgs& args, ThreadTeam& team) {
  const auto kernel = DLF_CPU_DISPATCH(attention_kernel);
  team.parallel_for(args.rows * args.heads, 1, [&](int64_t begin, int64_t end) { kernel(args, begin, end); });
}

}  // namespace dlf::ops
