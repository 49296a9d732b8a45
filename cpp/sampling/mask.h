#pragma once

#include <cstdint>

#include "support/host_device.h"

namespace dlf {

// A mask of tokens is an array of words: bit t % 32 of word t / 32 is 1 where token t may be chosen. llguidance and
// xgrammar write masks so.
constexpr int64_t mask_words(int64_t vocab) { return (vocab + 31) / 32; }

DLF_HOST_DEVICE inline bool allows(const int32_t* mask, int32_t token) {
  return ((static_cast<uint32_t>(mask[token / 32]) >> (token % 32)) & 1) != 0;
}

}  // namespace dlf
