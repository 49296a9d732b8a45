#pragma once

#include <cstring>
#include <type_traits>

#include "ops/cuda/vector.h"

// The tensor cores, and arithmetic on pairs of numbers. A register holds a pair of values of 16 bits, the first in its
// low half. Each hardware instruction has a plain version for the host.
namespace dlf::cuda {

// Value 0 or 1 of a pair.
template <typename T>
__device__ T half_of(uint32_t pair, int index) {
  const auto bits = static_cast<uint16_t>(pair >> (16 * index));
  T value;
  memcpy(&value, &bits, sizeof(value));
  return value;
}

// c [16, 8] += a [16, 16] b [16, 8] with sums in float32, by all lanes of a warp. With g = lane / 4 and t = lane % 4 a
// lane holds
//   a  row g, row g + 8 at columns 2t, 2t + 1; row g, row g + 8 at columns 2t + 8, 2t + 9
//   b  column g at rows 2t, 2t + 1 and at rows 2t + 8, 2t + 9
//   c  row g at columns 2t and 2t + 1, then row g + 8
// A column of c depends on its own column of b alone.
template <typename T>
__device__ void multiply_add(float (&c)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
#ifdef __CUDACC__
  if constexpr (std::is_same_v<T, __nv_bfloat16>) {
    asm volatile(
        "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 "
        "{%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
        : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
  } else {
    asm volatile(
        "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 "
        "{%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
        : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
  }
#else
  const int lane = static_cast<int>(threadIdx.x) % kWarp;
  const int row = lane / 4;
  const int column = lane % 4 * 2;
  for (int k = 0; k < 8; ++k) {  // pairs of columns of a
    const uint32_t rows[2] = {__shfl_sync(kAllLanes, a[k / 4 * 2], row * 4 + k % 4),
                              __shfl_sync(kAllLanes, a[k / 4 * 2 + 1], row * 4 + k % 4)};
    const uint32_t b = k < 4 ? b0 : b1;
    const uint32_t columns[2] = {__shfl_sync(kAllLanes, b, column * 4 + k % 4),
                                 __shfl_sync(kAllLanes, b, column * 4 + 4 + k % 4)};
    for (int i = 0; i < 4; ++i) {
      for (int j = 0; j < 2; ++j) {
        c[i] += to_float(half_of<T>(rows[i / 2], j)) * to_float(half_of<T>(columns[i % 2], j));
      }
    }
  }
#endif
}

// a - b, for both values of a pair.
template <typename T>
__device__ uint32_t subtract(uint32_t a, uint32_t b) {
#ifdef __CUDACC__
  using Pair = std::conditional_t<std::is_same_v<T, __nv_bfloat16>, __nv_bfloat162, __half2>;
  const Pair difference = __hsub2(reinterpret_cast<const Pair&>(a), reinterpret_cast<const Pair&>(b));
  return reinterpret_cast<const uint32_t&>(difference);
#else
  uint32_t pair = 0;
  for (int i = 0; i < 2; ++i) {
    const T value = from_float<T>(to_float(half_of<T>(a, i)) - to_float(half_of<T>(b, i)));
    uint16_t bits;
    memcpy(&bits, &value, sizeof(bits));
    pair |= static_cast<uint32_t>(bits) << (16 * i);
  }
  return pair;
#endif
}

// Returns (word & Mask) | Others in one instruction; the compiler would make two.
template <uint32_t Mask, uint32_t Others>
__device__ uint32_t put_bits(uint32_t word) {
#ifdef __CUDACC__
  constexpr uint32_t kAndOr = (0xf0U & 0xccU) | 0xaaU;
  uint32_t bits;
  asm("lop3.b32 %0, %1, %2, %3, %4;" : "=r"(bits) : "r"(word), "n"(Mask), "r"(Others), "n"(kAndOr));
  return bits;
#else
  return (word & Mask) | Others;
#endif
}

}  // namespace dlf::cuda
