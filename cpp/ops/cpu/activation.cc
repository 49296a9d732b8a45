#include "ops/activation.h"

namespace dlf::ops {

void swiglu(const SwiGluArgs& args, ThreadTeam& team) {
  const auto kernel = DLF_CPU_DISPATCH(swiglu_kernel);
  team.parallel_for(args.count, 2048, [&](int64_t begin, int64_t end) { kernel(args, begin, end); });
}

}  // namespace dlf::ops
