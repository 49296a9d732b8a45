#include "model/kv_cache.h"

#include <ATen/ops/empty.h>
#include <c10/util/Exception.h>

#include "support/scalar_type.h"

namespace dlf {

KVCache::KVCache(const ModelConfig& config, DType dtype, int64_t slots, int64_t max_context)
    : slots_(slots),
      max_context_(max_context),
      capacity_((max_context + ops::kCacheBlock - 1) / ops::kCacheBlock * ops::kCacheBlock) {
  const auto options = at::TensorOptions().dtype(scalar_type(dtype));
  const std::vector<int64_t> shape = {config.num_hidden_layers, slots, config.num_key_value_heads, capacity_,
                                      config.head_dim};
  keys_ = at::empty(shape, options);
  values_ = at::empty(shape, options);
  layer_bytes_ = static_cast<int64_t>(keys_.nbytes()) / config.num_hidden_layers;
  for (int64_t slot = slots; slot-- > 0;) {
    free_.push_back(slot);
  }
}

int64_t KVCache::acquire() {
  TORCH_INTERNAL_ASSERT(!free_.empty(), "no free slot in the KV cache");
  const int64_t slot = free_.back();
  free_.pop_back();
  return slot;
}

}  // namespace dlf
