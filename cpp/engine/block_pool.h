#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "model/block_store.h"

namespace dlf {

// Who holds which blocks of one model's KV cache: slots hold those of their positions, and chunks of the prefix cache
// those of theirs. A slot writes only into blocks that it took itself, behind the positions that others read; a block
// that it would share in part is copied first.
class BlockPool {
 public:
  BlockPool(int64_t slots, int64_t of_slot, BlockStore& store);

  int64_t size() const { return static_cast<int64_t>(users_.size()); }
  int64_t free() const { return static_cast<int64_t>(free_.size()); }  // held by nobody
  int64_t idle() const { return idle_; }                               // held by chunks alone

  // Blocks that reserve() takes.
  int64_t lacking(int64_t slot, int64_t positions) const;
  // Gives a slot room for its first `positions`. There must be enough free blocks.
  void reserve(int64_t slot, int64_t positions);
  // Lets a slot have the positions [begin, end) of a chunk, which are in these blocks.
  void share(int64_t slot, int64_t begin, int64_t end, std::span<const int32_t> blocks);
  // Copies what the slot shares of a block in part. Called before it writes behind that, with room for it.
  void settle(int64_t slot);
  // Frees what only this slot holds.
  void release(int64_t slot);

  // Holds the blocks of a slot's positions for a chunk, and drops them.
  std::vector<int32_t> keep(int64_t slot, int64_t begin, int64_t end);
  void drop(std::span<const int32_t> blocks);
  // Whether a slot holds one of these.
  bool used(std::span<const int32_t> blocks) const;

 private:
  static constexpr int32_t kNone = -1;

  struct Slot {
    int64_t count = 0;       // blocks: entries [0, count) of its row
    int64_t tail_index = 0;  // where the block stands that it shares in part
    int32_t tail = kNone;    // that block
  };

  int32_t& entry(int64_t slot, int64_t index) { return table_[slot * of_slot_ + index]; }
  void hold(int32_t block, int users, int kept);
  void drop_tail(Slot& slot);

  int64_t of_slot_;
  BlockStore& store_;
  std::vector<int32_t> table_;  // [slots, of_slot]
  std::vector<Slot> slots_;
  std::vector<int32_t> users_;  // of each block: slots that hold it
  std::vector<int32_t> kept_;   // likewise: chunks
  std::vector<int32_t> free_;   // the last one is taken next
  int64_t idle_ = 0;
};

}  // namespace dlf
