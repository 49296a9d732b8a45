#include "model/cpu/kv_cache.h"

#include <ATen/ops/empty.h>

#include <algorithm>
#include <cstring>
#include <numeric>

#include "ops/cpu/cache_layout.h"
#include "support/scalar_type.h"

namespace dlf {

KVCache::KVCache(const ModelSpec& spec, DType dtype, int64_t slots, int64_t max_context, int64_t blocks)
    : layers_(spec.layer_count()),
      kv_heads_(spec.attention.kv_heads),
      head_dim_(spec.attention.head_dim),
      slots_(slots),
      max_context_(max_context),
      of_slot_(ops::blocks_for(max_context)),
      table_(slots * of_slot_) {
  const int64_t all = slots * of_slot_;
  blocks = blocks > 0 ? blocks : all;
  if (blocks >= all) {
    std::iota(table_.begin(), table_.end(), 0);
  }
  const auto options = at::TensorOptions().dtype(scalar_type(dtype));
  const std::vector<int64_t> shape = {layers_, blocks, kv_heads_, ops::kCacheBlock, head_dim_};
  keys_ = at::empty(shape, options);
  values_ = at::empty(shape, options);
  width_ = keys_.element_size();
  layer_bytes_ = static_cast<int64_t>(keys_.nbytes()) / layers_;
}

int64_t KVCache::bytes(int64_t positions) const { return 2 * layers_ * kv_heads_ * head_dim_ * positions * width_; }

template <typename Move>
void KVCache::for_stretches(int64_t slot, int64_t begin, int64_t end, ThreadTeam& team, Move&& move) {
  const int64_t head_bytes = head_dim_ * (end - begin) * width_;
  team.parallel_for(layers_ * kv_heads_, 1, [&](int64_t first, int64_t last) {
    for (int64_t i = first; i < last; ++i) {
      const int64_t layer = i / kv_heads_;
      int64_t saved = i * 2 * head_bytes;
      for (int64_t position = begin; position < end;) {
        const int64_t next = std::min(end, (position / ops::kCacheBlock + 1) * ops::kCacheBlock);
        const int64_t offset =
            ops::cache_offset(table().block_of(slot, position), i % kv_heads_, kv_heads_, head_dim_) * width_;
        auto* const key = static_cast<char*>(keys(layer)) + offset;
        auto* const value = static_cast<char*>(values(layer)) + offset;
        const int64_t stretch = (next - position) * width_;
        move(value + ops::value_offset(position, head_dim_) * width_, saved, stretch * head_dim_);
        saved += stretch * head_dim_;
        // Within a block of positions, the keys lie dimension by dimension.
        for (int64_t d = 0; d < head_dim_; ++d) {
          move(key + ops::key_offset(position, d) * width_, saved, stretch);
          saved += stretch;
        }
        position = next;
      }
    }
  });
}

void KVCache::save(int64_t slot, int64_t begin, int64_t end, std::byte* to, ThreadTeam& team) {
  for_stretches(slot, begin, end, team,
                [to](const char* cache, int64_t saved, int64_t size) { std::memcpy(to + saved, cache, size); });
}

void KVCache::restore(int64_t slot, int64_t begin, int64_t end, const std::byte* from, ThreadTeam& team) {
  for_stretches(slot, begin, end, team,
                [from](char* cache, int64_t saved, int64_t size) { std::memcpy(cache, from + saved, size); });
}

}  // namespace dlf
