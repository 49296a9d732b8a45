#pragma once

#include <bit>
#include <cmath>
#include <cstdint>

#include "cuda_runtime.h"

// IEEE half precision. Has no arithmetic: kernels compute in float.
struct __half {
  uint16_t bits;

  __half() = default;
  __half(float x) : bits(round(x)) {}             // NOLINT: CUDA's is implicit too
  operator float() const { return widen(bits); }  // NOLINT

 private:
  static float widen(uint16_t half) {
    const int exponent = half >> 10 & 0x1f;
    const int fraction = half & 0x3ff;
    float magnitude = 0.0F;
    if (exponent == 0x1f) {
      magnitude = fraction == 0 ? INFINITY : NAN;
    } else if (exponent == 0) {
      magnitude = std::ldexp(static_cast<float>(fraction), -24);
    } else {
      magnitude = std::ldexp(static_cast<float>(fraction | 0x400), exponent - 25);
    }
    return (half & 0x8000) != 0 ? -magnitude : magnitude;
  }

  // Rounds to nearest, ties to even.
  static uint16_t round(float x) {
    if (x != x) {
      return 0x7fff;
    }
    const auto sign = static_cast<uint16_t>(std::bit_cast<uint32_t>(x) >> 16 & 0x8000);
    const float magnitude = std::fabs(x);
    if (magnitude >= 65520.0F) {
      return sign | 0x7c00;
    }
    if (magnitude < 0x1p-14F) {  // subnormal, or the smallest normal number after rounding
      return sign | static_cast<uint16_t>(std::nearbyint(magnitude * 0x1p24F));
    }
    const auto whole = std::bit_cast<uint32_t>(magnitude) - (112U << 23);
    return sign | static_cast<uint16_t>((whole + 0xfff + (whole >> 13 & 1)) >> 13);
  }
};
__half operator+(__half, __half) = delete;
__half operator-(__half, __half) = delete;
__half operator*(__half, __half) = delete;
__half operator/(__half, __half) = delete;

using half = __half;

struct alignas(4) __half2 {
  __half x, y;
};
using half2 = __half2;

inline float __half2float(__half x) { return x; }
inline __half __float2half(float x) { return {x}; }
inline __half __float2half_rn(float x) { return {x}; }
inline uint16_t __half_as_ushort(__half x) { return x.bits; }
inline __half __ushort_as_half(uint16_t bits) { return std::bit_cast<__half>(bits); }
inline float2 __half22float2(__half2 x) { return {x.x, x.y}; }
inline __half2 __float22half2_rn(float2 x) { return {x.x, x.y}; }
inline __half2 __floats2half2_rn(float x, float y) { return {x, y}; }
inline __half2 __float2half2_rn(float x) { return {x, x}; }
inline __half2 __halves2half2(__half x, __half y) { return {x, y}; }
inline __half2 __half2half2(__half x) { return {x, x}; }
inline __half2 make_half2(__half x, __half y) { return {x, y}; }
inline __half __low2half(__half2 x) { return x.x; }
inline __half __high2half(__half2 x) { return x.y; }
inline float __low2float(__half2 x) { return x.x; }
inline float __high2float(__half2 x) { return x.y; }
