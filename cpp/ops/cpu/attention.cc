#include "ops/cpu/attention.h"

#include <vector>

namespace dlf::ops {

void attention(const AttentionArgs& args, ThreadTeam& team) {
  const auto kernel = DLF_CPU_DISPATCH(attention_kernel);
  team.parallel_for(args.places.rows * args.kv_heads * head_groups(args), 1,
                    [&](int64_t begin, int64_t end) { kernel(args, begin, end); });
}

void prefill_attention(const AttentionArgs& args, ThreadTeam& team) {
  const auto kernel = DLF_CPU_DISPATCH_BF16(prefill_attention_kernel);
  const int64_t items = args.kv_heads * ((args.places.rows + kPrefillRows - 1) / kPrefillRows);
  team.parallel_for(items, 1, [&](int64_t begin, int64_t end) {
    std::vector<uint32_t> scratch(prefill_scratch(args));
    kernel(args, scratch.data(), begin, end);
  });
}

}  // namespace dlf::ops
