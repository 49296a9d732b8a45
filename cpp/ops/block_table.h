#pragma once

#include <cstdint>

#include "support/host_device.h"

namespace dlf::ops {

inline constexpr int64_t kCacheBlock = 64;  // positions of a block of the KV cache

constexpr int64_t blocks_for(int64_t positions) { return (positions + kCacheBlock - 1) / kCacheBlock; }

// Which blocks of the KV cache hold the positions of each slot. Slots that begin alike may share blocks
// (PagedAttention, Kwon et al., arXiv 2309.06180).
struct BlockTable {
  const int32_t* blocks;  // [slots, of_slot]
  int64_t of_slot;

  DLF_HOST_DEVICE int64_t block_of(int64_t slot, int64_t position) const {
    return blocks[slot * of_slot + position / kCacheBlock];
  }
};

}  // namespace dlf::ops
