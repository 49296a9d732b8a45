#include "ops/cpu/rope.h"

#include "ops/cpu/norm.h"

namespace dlf::ops {
namespace {

// Applies RMSNorm to each head of contiguous rows, or to whole rows.
void norm_heads(void* rows, const float* weight, int heads, const RopeArgs& args, ThreadTeam& team) {
  if (weight != nullptr) {
    auto* const x = static_cast<float*>(rows);
    const int together = args.whole_norm ? heads : 1;
    norm({x,
          nullptr,
          x,
          args.places.rows * heads / together,
          args.head_dim * together,
          {weight, args.epsilon},
          DType::float32},
         team);
  }
}

}  // namespace

void rope_and_cache(const RopeArgs& args, ThreadTeam& team) {
  norm_heads(args.q, args.q_norm, args.heads, args, team);
  norm_heads(args.k, args.k_norm, args.kv_heads, args, team);
  const auto kernel = DLF_CPU_DISPATCH(rope_and_cache_kernel);
  team.parallel_for(args.places.rows, 4, [&](int64_t begin, int64_t end) { kernel(args, begin, end); });
}

}  // namespace dlf::ops
