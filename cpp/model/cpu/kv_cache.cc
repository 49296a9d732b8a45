#include "model/cpu/kv_cache.h"

#include <ATen/ops/empty.h>

#include <cstring>
#include <numeric>

#include "support/scalar_type.h"

namespace dlf {

KVCache::KVCache(const ModelSpec& spec, DType dtype, int64_t slots, int64_t max_context, int64_t blocks)
    : slots_(slots), max_context_(max_context), of_slot_(ops::blocks_for(max_context)), table_(slots * of_slot_) {
  const int64_t all = slots * of_slot_;
  blocks = blocks > 0 ? blocks : all;
  if (blocks >= all) {
    std::iota(table_.begin(), table_.end(), 0);
  }
  const auto options = at::TensorOptions().dtype(scalar_type(dtype));
  const std::vector<int64_t> shape = {spec.layer_count(), blocks, spec.attention.kv_heads, ops::kCacheBlock,
                                      spec.attention.head_dim};
  keys_ = at::empty(shape, options);
  values_ = at::empty(shape, options);
  layer_bytes_ = static_cast<int64_t>(keys_.nbytes()) / spec.layer_count();
}

void KVCache::copy_block(int32_t from, int32_t to) {
  const int64_t bytes = layer_bytes_ / block_count();
  for (int64_t layer = 0; layer < keys_.size(0); ++layer) {
    for (void* side : {keys(layer), values(layer)}) {
      auto* const blocks = static_cast<char*>(side);
      std::memcpy(blocks + to * bytes, blocks + from * bytes, bytes);
    }
  }
}

}  // namespace dlf
