#pragma once

#include <cstdint>

#include "support/host_device.h"

namespace dlf::ops {

// Positions and slots of a pass's rows in the KV cache.
struct Places {
  int rows;
  const int32_t* position;  // [rows], −1: the row is idle; null: row r is at start + r
  int start;
  const int32_t* slot;  // [rows]; null: row r has slot first_slot + r % slots
  int first_slot;
  int slots;

  DLF_HOST_DEVICE int position_of(int row) const { return position != nullptr ? position[row] : start + row; }
  DLF_HOST_DEVICE int slot_of(int row) const { return slot != nullptr ? slot[row] : first_slot + row % slots; }
};

// Places of a prompt's neighbouring positions in one slot.
constexpr Places prompt_places(int rows, int start, int slot) { return {rows, nullptr, start, nullptr, slot, 1}; }

}  // namespace dlf::ops
