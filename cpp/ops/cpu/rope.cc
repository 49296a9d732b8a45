#include "ops/cpu/rope.h"

#include "ops/cpu/norm.h"

namespace dlf::ops {
namespace {

// Norms each head of contiguous rows, or whole rows.
void norm_heads(void* rows, const NormOf& norm, int heads, const RopeArgs& args, ThreadTeam& team) {
  const int together = args.head_norm == HeadNorm::whole ? heads : 1;
  const int count = args.places.rows * heads / together;
  const int size = args.head_dim * together;
  auto* const x = static_cast<float*>(rows);
  const NormArgs all = {x, nullptr, x, count, size, norm, DType::float32};
  if (args.head_norm != HeadNorm::own) {
    return ops::norm(all, team);
  }
  const auto kernel = DLF_CPU_DISPATCH(norm_kernel);
  team.parallel_for(count, 4, [&](int64_t begin, int64_t end) {
    NormArgs one = all;
    for (int64_t i = begin; i < end; ++i) {
      const int64_t first = i % heads * size;
      one.norm.weight = norm.weight + first;
      one.norm.bias = norm.bias != nullptr ? norm.bias + first : nullptr;
      kernel(one, i, i + 1);
    }
  });
}

}  // namespace

void rope_and_cache(const RopeArgs& args, ThreadTeam& team) {
  if (args.head_norm != HeadNorm::none) {
    norm_heads(args.q, args.q_norm, args.heads, args, team);
    norm_heads(args.k, args.k_norm, args.kv_heads, args, team);
  }
  const auto kernel = DLF_CPU_DISPATCH(rope_and_cache_kernel);
  team.parallel_for(args.places.rows, 4, [&](int64_t begin, int64_t end) { kernel(args, begin, end); });
}

}  // namespace dlf::ops
