#pragma once

#include <bit>
#include <cstdint>

// Rounding in plain arithmetic, which the compiler vectorises. Local to the *_kernel.cc file and the instruction set
// that it is compiled for.
namespace dlf::ops::DLF_CPU {
namespace {

constexpr float kLeast = 1e-30F;  // smaller magnitudes count as zero, so that every other value has a finite reciprocal

inline float magnitude(float value) { return std::bit_cast<float>(std::bit_cast<uint32_t>(value) & 0x7fffffffU); }

// Rounds to the nearest bfloat16, ties to even; a NaN stays one.
inline uint16_t to_bfloat16(float value) {
  const auto bits = std::bit_cast<uint32_t>(value);
  const uint32_t rounded = (bits + 0x7fffU + ((bits >> 16) & 1U)) >> 16;
  return static_cast<uint16_t>((bits & 0x7fffffffU) > 0x7f800000U ? 0x7fc0U : rounded);
}
inline float from_bfloat16(uint16_t bits) { return std::bit_cast<float>(static_cast<uint32_t>(bits) << 16); }

}  // namespace
}  // namespace dlf::ops::DLF_CPU
