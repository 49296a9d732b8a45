#pragma once

#include <ATen/core/Tensor.h>

#include <vector>

#include "model/config.h"
#include "ops/cache_layout.h"
#include "support/dtype.h"

namespace dlf {

// Keys and values of all lanes on one Weights. A lane owns one slot; taking the cache back to an earlier position is
// only a smaller position in the next forward pass. Memory is reserved at once and touched as positions are written.
class KVCache {
 public:
  KVCache(const ModelConfig& config, DType dtype, int64_t slots, int64_t max_context);

  void* keys(int64_t layer) { return static_cast<char*>(keys_.mutable_data_ptr()) + layer * layer_bytes_; }
  void* values(int64_t layer) { return static_cast<char*>(values_.mutable_data_ptr()) + layer * layer_bytes_; }
  int64_t max_context() const { return max_context_; }
  int64_t capacity() const { return capacity_; }  // max_context in whole blocks
  int64_t slots() const { return slots_; }

  int64_t acquire();  // a free slot; there must be one
  void release(int64_t slot) { free_.push_back(slot); }
  int64_t free_slots() const { return static_cast<int64_t>(free_.size()); }

 private:
  at::Tensor keys_;  // [layers, ...] as in ops/cache_layout.h
  at::Tensor values_;
  int64_t layer_bytes_;
  int64_t slots_;
  int64_t max_context_;
  int64_t capacity_;
  std::vector<int64_t> free_;
};

}  // namespace dlf
