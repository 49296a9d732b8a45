#pragma once

#include <cstdint>

#include "support/host_device.h"

namespace dlf {

struct Philox4 {
  uint32_t word[4];
};

// Philox4x32-10 (Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", 2011). The key is the seed and the
// counter is (step, stream), so a draw depends on nothing but these three: not on the device, nor on what else is in
// the batch.
DLF_HOST_DEVICE inline Philox4 philox4x32(uint64_t seed, uint64_t step, uint64_t stream) {
  uint32_t key0 = static_cast<uint32_t>(seed);
  uint32_t key1 = static_cast<uint32_t>(seed >> 32);
  Philox4 counter{{static_cast<uint32_t>(step), static_cast<uint32_t>(step >> 32), static_cast<uint32_t>(stream),
                   static_cast<uint32_t>(stream >> 32)}};
  for (int round = 0; round < 10; ++round) {
    const uint64_t product0 = uint64_t{0xD2511F53} * counter.word[0];
    const uint64_t product1 = uint64_t{0xCD9E8D57} * counter.word[2];
    counter = {{static_cast<uint32_t>(product1 >> 32) ^ counter.word[1] ^ key0, static_cast<uint32_t>(product1),
                static_cast<uint32_t>(product0 >> 32) ^ counter.word[3] ^ key1, static_cast<uint32_t>(product0)}};
    key0 += 0x9E3779B9;
    key1 += 0xBB67AE85;
  }
  return counter;
}

// Uniform number in [0, 1) of 53 random bits.
DLF_HOST_DEVICE inline double philox_uniform(uint64_t seed, uint64_t step, uint64_t stream = 0) {
  const Philox4 random = philox4x32(seed, step, stream);
  const uint64_t bits = (uint64_t{random.word[0]} << 32) | random.word[1];
  return static_cast<double>(bits >> 11) * 0x1p-53;
}

}  // namespace dlf
