#include "ops/cpu/norm.h"

namespace dlf::ops {

void norm(const NormArgs& args, ThreadTeam& team) {
  const auto kernel = DLF_CPU_DISPATCH(norm_kernel);
  team.parallel_for(args.rows, 4, [&](int64_t begin, int64_t end) { kernel(args, begin, end); });
}

void add_norm(const AddNormArgs& args, ThreadTeam& team) {
  const auto kernel = DLF_CPU_DISPATCH(add_norm_kernel);
  team.parallel_for(args.rows, 4, [&](int64_t begin, int64_t end) { kernel(args, begin, end); });
}

}  // namespace dlf::ops
