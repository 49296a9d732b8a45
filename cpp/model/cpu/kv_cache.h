#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <vector>

#include "model/block_store.h"
#include "model/spec.h"
#include "ops/block_table.h"
#include "support/dtype.h"

namespace dlf {

// Keys and values of all lanes on one Weights, in blocks of positions. A lane owns one slot, whose row of the table
// says which blocks are its. To go back, the next forward pass just begins at an earlier position. Memory is reserved
// at once and touched as positions are written.
class KVCache final : public BlockStore {
 public:
  // With as many blocks as all slots need, each slot has its own from the beginning. `blocks` 0: just as many.
  KVCache(const ModelSpec& spec, DType dtype, int64_t slots, int64_t max_context, int64_t blocks = 0);

  void* keys(int64_t layer) { return static_cast<char*>(keys_.mutable_data_ptr()) + layer * layer_bytes_; }
  void* values(int64_t layer) { return static_cast<char*>(values_.mutable_data_ptr()) + layer * layer_bytes_; }
  ops::BlockTable table() const { return {table_.data(), of_slot_}; }
  int64_t max_context() const { return max_context_; }
  int64_t slots() const { return slots_; }

  int64_t block_count() const override { return keys_.size(1); }
  void set_block(int64_t slot, int64_t index, int32_t block) override { table_[slot * of_slot_ + index] = block; }
  void copy_block(int32_t from, int32_t to) override;

 private:
  at::Tensor keys_;  // [layers, ...] as in ops/cpu/cache_layout.h
  at::Tensor values_;
  int64_t layer_bytes_;
  int64_t slots_;
  int64_t max_context_;
  int64_t of_slot_;             // blocks of a slot
  std::vector<int32_t> table_;  // [slots, of_slot]
};

}  // namespace dlf
