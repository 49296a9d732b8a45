#include "ops/cpu/attention.h"

#include <vector>

namespace dlf::ops {

void attention(const AttentionArgs& args, ThreadTeam& team) {
  const auto kernel = DLF_CPU_DISPATCH(attention_kernel);
  team.parallel_for(args.places.rows * args.kv_heads * head_groups(args), 1,
                    [&](int64_t begin, int64_t end) { kernel(args, begin, end); });
}

void prefill_attention(const AttentionArgs& args, ThreadTeam& team) {
  const auto kernel = DLF_CPU_DISPATCH(prefill_attention_kernel);
  const int64_t queries = kPrefillChunk * args.heads / args.kv_heads;
  const int64_t chunks = (args.places.rows + kPrefillChunk - 1) / kPrefillChunk;
  team.parallel_for(args.kv_heads * chunks, 1, [&](int64_t begin, int64_t end) {
    const int64_t block = kCacheBlock * args.head_dim;
    std::vector<float> memory(2 * block + queries * args.head_dim);
    std::vector<RunningSoftmax> states(queries);
    kernel(args, {memory.data(), memory.data() + block, memory.data() + 2 * block, states.data()}, begin, end);
  });
}

}  // namespace dlf::ops
