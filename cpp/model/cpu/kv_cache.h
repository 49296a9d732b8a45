#pragma once

#include <ATen/core/Tensor.h>

#include <cstddef>
#include <cstdint>
#include <vector>

#include "model/spec.h"
#include "ops/block_table.h"
#include "support/dtype.h"
#include "support/thread_team.h"

namespace dlf {

// Keys and values of all lanes on one Weights, in blocks of positions. A lane owns one slot, whose row of the table
// says which blocks are its. To go back, the next forward pass just begins at an earlier position. Memory is reserved
// at once and touched as positions are written.
class KVCache {
 public:
  // With as many blocks as all slots need, each slot has its own from the beginning. `blocks` 0: just as many.
  KVCache(const ModelSpec& spec, DType dtype, int64_t slots, int64_t max_context, int64_t blocks = 0);

  void* keys(int64_t layer) { return static_cast<char*>(keys_.mutable_data_ptr()) + layer * layer_bytes_; }
  void* values(int64_t layer) { return static_cast<char*>(values_.mutable_data_ptr()) + layer * layer_bytes_; }
  ops::BlockTable table() const { return {table_.data(), of_slot_}; }
  int64_t max_context() const { return max_context_; }
  int64_t slots() const { return slots_; }

  // Copy the keys and values of the positions [begin, end) of a slot into `to`, in an order of their own, and back.
  // They are bytes(end - begin) long.
  int64_t bytes(int64_t positions) const;
  void save(int64_t slot, int64_t begin, int64_t end, std::byte* to, ThreadTeam& team);
  void restore(int64_t slot, int64_t begin, int64_t end, const std::byte* from, ThreadTeam& team);

 private:
  // Calls move(address in the cache, offset in the saved bytes, size) for each contiguous stretch.
  template <typename Move>
  void for_stretches(int64_t slot, int64_t begin, int64_t end, ThreadTeam& team, Move&& move);

  at::Tensor keys_;  // [layers, ...] as in ops/cpu/cache_layout.h
  at::Tensor values_;
  int64_t layers_;
  int64_t kv_heads_;
  int64_t head_dim_;
  int64_t width_;  // bytes of an element
  int64_t layer_bytes_;
  int64_t slots_;
  int64_t max_context_;
  int64_t of_slot_;             // blocks of a slot
  std::vector<int32_t> table_;  // [slots, of_slot]
};

}  // namespace dlf
