#include "model/cpu/kv_cache.h"

#include <ATen/ops/empty.h>

#include <algorithm>
#include <cstring>
#include <vector>

#include "support/scalar_type.h"

namespace dlf {

KVCache::KVCache(const ModelSpec& spec, DType dtype, int64_t slots, int64_t max_context)
    : layers_(spec.layer_count()),
      kv_heads_(spec.attention.kv_heads),
      head_dim_(spec.attention.head_dim),
      slots_(slots),
      max_context_(max_context),
      capacity_((max_context + ops::kCacheBlock - 1) / ops::kCacheBlock * ops::kCacheBlock) {
  const auto options = at::TensorOptions().dtype(scalar_type(dtype));
  const std::vector<int64_t> shape = {spec.layer_count(), slots, spec.attention.kv_heads, capacity_,
                                      spec.attention.head_dim};
  keys_ = at::empty(shape, options);
  values_ = at::empty(shape, options);
  width_ = keys_.element_size();
  layer_bytes_ = static_cast<int64_t>(keys_.nbytes()) / spec.layer_count();
}

int64_t KVCache::bytes(int64_t positions) const { return 2 * layers_ * kv_heads_ * head_dim_ * positions * width_; }

template <typename Move>
void KVCache::for_stretches(int64_t slot, int64_t begin, int64_t end, ThreadTeam& team, Move&& move) {
  const int64_t head_bytes = head_dim_ * (end - begin) * width_;
  team.parallel_for(layers_ * kv_heads_, 1, [&](int64_t first, int64_t last) {
    for (int64_t i = first; i < last; ++i) {
      const int64_t layer = i / kv_heads_;
      const int64_t offset = ops::cache_offset(slot, i % kv_heads_, kv_heads_, capacity_, head_dim_);
      auto* const key = static_cast<char*>(keys(layer)) + offset * width_;
      auto* const value = static_cast<char*>(values(layer)) + offset * width_;
      int64_t saved = i * 2 * head_bytes;
      move(value + begin * head_dim_ * width_, saved, head_bytes);
      saved += head_bytes;
      // Within a block of positions, the keys lie dimension by dimension.
      for (int64_t position = begin; position < end;) {
        const int64_t next = std::min(end, (position / ops::kCacheBlock + 1) * ops::kCacheBlock);
        const int64_t stretch = (next - position) * width_;
        for (int64_t d = 0; d < head_dim_; ++d) {
          move(key + ops::key_offset(position, d, head_dim_) * width_, saved, stretch);
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
