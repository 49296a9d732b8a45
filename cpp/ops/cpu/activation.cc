#include "ops/cpu/activation.h"

namespace dlf::ops {

void activate(const ActivationArgs& args, ThreadTeam& team) {
  const auto kernel = DLF_CPU_DISPATCH(activation_kernel);
  const int64_t count = static_cast<int64_t>(args.rows) * args.size;
  team.parallel_for(count, 2048, [&](int64_t begin, int64_t end) { kernel(args, begin, end); });
}

}  // namespace dlf::ops
