#include "engine/block_pool.h"

#include <c10/util/Exception.h>

#include <algorithm>
#include <numeric>

namespace dlf {

BlockPool::BlockPool(int64_t slots, int64_t of_slot, BlockStore& store)
    : of_slot_(of_slot),
      store_(store),
      table_(slots * of_slot, kNone),
      slots_(slots),
      users_(store.block_count()),
      kept_(store.block_count()),
      free_(store.block_count()) {
  std::iota(free_.rbegin(), free_.rend(), 0);
}

int64_t BlockPool::lacking(int64_t slot, int64_t positions) const {
  return std::max<int64_t>(ops::blocks_for(positions) - slots_[slot].count, 0);
}

void BlockPool::reserve(int64_t slot, int64_t positions) {
  TORCH_INTERNAL_ASSERT(positions <= of_slot_ * ops::kCacheBlock && lacking(slot, positions) <= free());
  for (int64_t& count = slots_[slot].count; count < ops::blocks_for(positions); ++count) {
    const int32_t block = free_.back();
    free_.pop_back();
    users_[block] = 1;
    entry(slot, count) = block;
    store_.set_block(slot, count, block);
  }
}

void BlockPool::share(int64_t slot, int64_t begin, int64_t end, std::span<const int32_t> blocks) {
  Slot& to = slots_[slot];
  const int64_t first = begin / ops::kCacheBlock;
  const int64_t whole = end / ops::kCacheBlock;
  TORCH_INTERNAL_ASSERT(first <= to.count + 1 && std::ssize(blocks) == ops::blocks_for(end) - first);
  for (int64_t index = first; index < whole; ++index) {
    const int32_t block = blocks[index - first];
    hold(block, 1, 0);
    if (index < to.count) {
      hold(entry(slot, index), -1, 0);
    }
    entry(slot, index) = block;
    store_.set_block(slot, index, block);
  }
  to.count = std::max(to.count, whole);
  const int32_t tail = end % ops::kCacheBlock == 0 ? kNone : blocks[whole - first];
  if (tail != kNone) {
    hold(tail, 1, 0);
  }
  drop_tail(to);
  to.tail = tail;
  to.tail_index = whole;
}

void BlockPool::settle(int64_t slot) {
  Slot& to = slots_[slot];
  if (to.tail != kNone) {
    TORCH_INTERNAL_ASSERT(to.tail_index < to.count);
    store_.copy_block(to.tail, entry(slot, to.tail_index));
    drop_tail(to);
  }
}

void BlockPool::release(int64_t slot) {
  Slot& of = slots_[slot];
  drop_tail(of);
  while (of.count > 0) {
    hold(entry(slot, --of.count), -1, 0);
  }
}

std::vector<int32_t> BlockPool::keep(int64_t slot, int64_t begin, int64_t end) {
  std::vector<int32_t> blocks;
  blocks.reserve(ops::blocks_for(end) - begin / ops::kCacheBlock);
  for (int64_t index = begin / ops::kCacheBlock; index < ops::blocks_for(end); ++index) {
    blocks.push_back(entry(slot, index));
    hold(blocks.back(), 0, 1);
  }
  return blocks;
}

void BlockPool::drop(std::span<const int32_t> blocks) {
  for (const int32_t block : blocks) {
    hold(block, 0, -1);
  }
}

bool BlockPool::used(std::span<const int32_t> blocks) const {
  return std::any_of(blocks.begin(), blocks.end(), [&](int32_t block) { return users_[block] > 0; });
}

// Counts holders, and frees a block that has none left.
void BlockPool::hold(int32_t block, int users, int kept) {
  const auto is_idle = [&] { return users_[block] == 0 && kept_[block] > 0 ? 1 : 0; };
  idle_ -= is_idle();
  users_[block] += users;
  kept_[block] += kept;
  idle_ += is_idle();
  if (users_[block] == 0 && kept_[block] == 0) {
    free_.push_back(block);
  }
}

void BlockPool::drop_tail(Slot& slot) {
  if (slot.tail != kNone) {
    hold(slot.tail, -1, 0);
    slot.tail = kNone;
  }
}

}  // namespace dlf
