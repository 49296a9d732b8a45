#pragma once

#include <bit>
#include <cstdint>
#include <cstring>
#include <type_traits>

#include "../../emulator.h"

// __syncthreads and the collectives of a warp.
namespace dlf::emulation {

template <typename T>
uint64_t to_bits(T value) {
  static_assert(sizeof(T) <= sizeof(uint64_t) && std::is_trivially_copyable_v<T>);
  uint64_t bits = 0;
  std::memcpy(&bits, &value, sizeof(T));
  return bits;
}

template <typename T>
T from_bits(uint64_t bits) {
  T value;
  std::memcpy(&value, &bits, sizeof(T));
  return value;
}

template <typename Body>
void for_each_lane(unsigned lanes, Body&& body) {
  for (; lanes != 0; lanes &= lanes - 1) {
    body(std::countr_zero(lanes));
  }
}

// A lane that is absent gives an undefined value, as on the device.
inline void exchange_shuffle(Offer* offers, unsigned lanes) {
  constexpr uint64_t kPoison = 0xcdcdcdcdcdcdcdcdULL;
  for_each_lane(lanes, [&](int lane) {
    const int source = offers[lane].source;
    offers[lane].received = (lanes >> source & 1U) != 0 ? offers[source].value : kPoison;
  });
}

inline void exchange_ballot(Offer* offers, unsigned lanes) {
  uint64_t ballot = 0;
  for_each_lane(lanes, [&](int lane) { ballot |= (offers[lane].value & 1U) << lane; });
  for_each_lane(lanes, [&](int lane) { offers[lane].received = ballot; });
}

// Finds the lanes that offer the same value as this lane.
inline void exchange_match(Offer* offers, unsigned lanes) {
  for_each_lane(lanes, [&](int lane) {
    uint64_t equal = 0;
    for_each_lane(
        lanes, [&](int other) { equal |= static_cast<uint64_t>(offers[other].value == offers[lane].value) << other; });
    offers[lane].received = equal;
  });
}

template <typename T, T (*combine)(T, T)>
void exchange_reduce(Offer* offers, unsigned lanes) {
  const int first = std::countr_zero(lanes);
  T result = from_bits<T>(offers[first].value);
  for_each_lane(lanes & (lanes - 1), [&](int lane) { result = combine(result, from_bits<T>(offers[lane].value)); });
  for_each_lane(lanes, [&](int lane) { offers[lane].received = to_bits(result); });
}

template <typename T>
T add(T a, T b) {
  return static_cast<T>(static_cast<unsigned>(a) + static_cast<unsigned>(b));
}
template <typename T>
T smaller(T a, T b) {
  return b < a ? b : a;
}
template <typename T>
T larger(T a, T b) {
  return a < b ? b : a;
}
inline unsigned bit_and(unsigned a, unsigned b) { return a & b; }
inline unsigned bit_or(unsigned a, unsigned b) { return a | b; }
inline unsigned bit_xor(unsigned a, unsigned b) { return a ^ b; }

inline int lane() {
  return static_cast<int>((place->thread.x + blockDim.x * (place->thread.y + blockDim.y * place->thread.z)) % 32);
}

template <typename T>
T shuffle(unsigned mask, T value, int source) {
  return from_bits<T>(meet_warp(mask, exchange_shuffle, to_bits(value), source));
}

}  // namespace dlf::emulation

inline void __syncthreads() { dlf::emulation::synchronize_block(false); }
inline int __syncthreads_count(int predicate) { return dlf::emulation::synchronize_block(predicate != 0).yes; }
inline int __syncthreads_or(int predicate) { return __syncthreads_count(predicate) > 0; }
inline int __syncthreads_and(int predicate) {
  const auto votes = dlf::emulation::synchronize_block(predicate != 0);
  return votes.yes == votes.all;
}

inline void __syncwarp(unsigned mask = ~0U) { dlf::emulation::meet_warp(mask, nullptr, 0, 0); }
inline unsigned __activemask() { return dlf::emulation::present_lanes(); }

// `width`, a power of two, splits the warp into parts; a lane reads only within its part.
template <typename T>
T __shfl_sync(unsigned mask, T value, int source, int width = 32) {
  const int part = dlf::emulation::lane() & ~(width - 1);
  return dlf::emulation::shuffle(mask, value, part + (source & (width - 1)));
}
template <typename T>
T __shfl_xor_sync(unsigned mask, T value, int lane_mask, int width = 32) {
  const int lane = dlf::emulation::lane();
  const int source = lane ^ lane_mask;
  const int end = (lane & ~(width - 1)) + width;
  return dlf::emulation::shuffle(mask, value, source < end ? source : lane);
}
template <typename T>
T __shfl_down_sync(unsigned mask, T value, unsigned delta, int width = 32) {
  const int lane = dlf::emulation::lane();
  const int end = (lane & ~(width - 1)) + width;
  return dlf::emulation::shuffle(mask, value,
                                 lane + static_cast<int>(delta) < end ? lane + static_cast<int>(delta) : lane);
}
template <typename T>
T __shfl_up_sync(unsigned mask, T value, unsigned delta, int width = 32) {
  const int lane = dlf::emulation::lane();
  const int begin = lane & ~(width - 1);
  return dlf::emulation::shuffle(mask, value,
                                 lane - static_cast<int>(delta) >= begin ? lane - static_cast<int>(delta) : lane);
}

inline unsigned __ballot_sync(unsigned mask, int predicate) {
  return static_cast<unsigned>(
      dlf::emulation::meet_warp(mask, dlf::emulation::exchange_ballot, predicate != 0 ? 1 : 0, 0));
}
inline int __any_sync(unsigned mask, int predicate) { return __ballot_sync(mask, predicate) != 0; }
inline int __all_sync(unsigned mask, int predicate) { return __ballot_sync(mask, predicate == 0) == 0; }
template <typename T>
unsigned __match_any_sync(unsigned mask, T value) {
  return static_cast<unsigned>(
      dlf::emulation::meet_warp(mask, dlf::emulation::exchange_match, dlf::emulation::to_bits(value), 0));
}

#define DLF_WARP_REDUCE(name, type, combine)                                                                    \
  inline type __reduce_##name##_sync(unsigned mask, type value) {                                               \
    using namespace dlf::emulation;                                                                             \
    return from_bits<type>(meet_warp(mask, exchange_reduce<type, combine>, dlf::emulation::to_bits(value), 0)); \
  }
DLF_WARP_REDUCE(add, int, add<int>)
DLF_WARP_REDUCE(add, unsigned, add<unsigned>)
DLF_WARP_REDUCE(min, int, smaller<int>)
DLF_WARP_REDUCE(min, unsigned, smaller<unsigned>)
DLF_WARP_REDUCE(max, int, larger<int>)
DLF_WARP_REDUCE(max, unsigned, larger<unsigned>)
DLF_WARP_REDUCE(and, unsigned, bit_and)
DLF_WARP_REDUCE(or, unsigned, bit_or)
DLF_WARP_REDUCE(xor, unsigned, bit_xor)
#undef DLF_WARP_REDUCE
