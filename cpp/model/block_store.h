#pragma once

#include <cstdint>

#include "model/spec.h"
#include "ops/block_table.h"
#include "support/dtype.h"

namespace dlf {

// The KV cache of one model as its blocks are handed out. Changes take effect before the model's next pass.
class BlockStore {
 public:
  virtual ~BlockStore() = default;

  virtual int64_t block_count() const = 0;
  // Makes `block` the one with the `index`-th kCacheBlock positions of a slot.
  virtual void set_block(int64_t slot, int64_t index, int32_t block) = 0;
  virtual void copy_block(int32_t from, int32_t to) = 0;
};

// Bytes of a block: keys and values of all layers.
inline int64_t block_bytes(const ModelSpec& spec, DType dtype) {
  const int64_t width = dtype == DType::float32 ? 4 : 2;
  return 2 * spec.layer_count() * spec.attention.kv_size() * ops::kCacheBlock * width;
}

}  // namespace dlf
