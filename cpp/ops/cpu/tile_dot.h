#pragma once

#include <cstdint>

#if defined(CPU_CAPABILITY_AVX512) || defined(CPU_CAPABILITY_AVX2)
#include <immintrin.h>
#endif

#include "ops/matrix.h"

// Operations of the products of tiles per instruction set: 16 channels side by side, each with 4 inputs in 32 bits.
//   Bytes   4 weights of each of 16 channels
//   Ints    16 sums of products
//   Floats  16 channels of the result
// x is 4 activations of 8 bits, the same for all channels. Where weights are multiplied as value + offset, the caller
// starts its sums at −offset · Σx.
namespace dlf::ops::DLF_CPU {

#if defined(CPU_CAPABILITY_AVX512)

using Ints = __m512i;
using Floats = __m512;
using Bytes = __m512i;
constexpr int64_t kMostRows = 8;   // rows of x that share one reading of W: as many as the registers hold
constexpr int64_t kBlockRows = 6;  // rows and tiles of a product in a block
constexpr int64_t kBlockTiles = 2;

inline Ints broadcast(int32_t value) { return _mm512_set1_epi32(value); }
inline Ints multiply(Ints a, int32_t by) { return _mm512_mullo_epi32(a, broadcast(by)); }
inline Ints add(Ints a, Ints b) { return _mm512_add_epi32(a, b); }
inline Floats zeros() { return _mm512_setzero_ps(); }
inline Bytes load_bytes(const void* from) { return _mm512_loadu_si512(from); }
inline void store_bytes(void* to, Bytes bytes) { _mm512_storeu_si512(to, bytes); }
inline Bytes low_halves(Bytes bytes) { return _mm512_and_si512(bytes, _mm512_set1_epi8(15)); }
inline Bytes high_halves(Bytes bytes) { return low_halves(_mm512_srli_epi16(bytes, 4)); }
inline Floats load_floats(const float* from) { return _mm512_loadu_ps(from); }
inline Floats load_bfloat16(const uint16_t* from) {
  const __m256i bits = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(from));
  return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(bits), 16));
}
inline Floats load_float16(const uint16_t* from) {
  return _mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(from)));
}
inline Floats load_int8(const int8_t* from) {
  return _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(from))));
}
// Puts bits [Place, Place + 2) of each byte above its low four bits in `low`.
template <int Place>
inline Bytes with_high_bits(Bytes low, Bytes high) {
  const __m512i placed = Place < 4 ? _mm512_slli_epi16(high, 4 - Place) : _mm512_srli_epi16(high, Place - 4);
  return _mm512_or_si512(low, _mm512_and_si512(placed, _mm512_set1_epi8(0x30)));
}
inline Floats scale(Floats values, float by) { return _mm512_mul_ps(values, _mm512_set1_ps(by)); }
inline Floats multiply(Floats a, Floats b) { return _mm512_mul_ps(a, b); }
inline Floats multiply_add(Floats values, float by, Floats sum) {
  return _mm512_fmadd_ps(values, _mm512_set1_ps(by), sum);
}
inline Floats multiply_add(Ints dots, Floats scale, Floats sum) {
  return _mm512_fmadd_ps(_mm512_cvtepi32_ps(dots), scale, sum);
}
inline Floats multiply_add(Ints dots, float scale, Floats sum) {
  return multiply_add(dots, _mm512_set1_ps(scale), sum);
}
inline void store(float* to, Floats values) { _mm512_storeu_ps(to, values); }

#if defined(__AVX512VNNI__)
constexpr int32_t kInt8Offset = 128;
inline Bytes with_offset(Bytes weights) { return _mm512_xor_si512(weights, _mm512_set1_epi8(-128)); }
inline Ints dot_unsigned(Ints sum, Bytes weights, int32_t x) { return _mm512_dpbusd_epi32(sum, weights, broadcast(x)); }
inline Ints dot_int8(Ints sum, Bytes weights, int32_t x) { return dot_unsigned(sum, weights, x); }
#else
constexpr int32_t kInt8Offset = 0;
inline Bytes with_offset(Bytes weights) { return weights; }
// Sums pairs of products in 16 bits, which 2 · 127 · 127 doesn't overflow, then pairs of those.
inline Ints dot_unsigned(Ints sum, Bytes weights, int32_t x) {
  return add(sum, _mm512_madd_epi16(_mm512_maddubs_epi16(weights, broadcast(x)), _mm512_set1_epi16(1)));
}
inline Ints dot_int8(Ints sum, Bytes weights, int32_t x) {
  const __m512i values = broadcast(x);
  const __m512i negated = _mm512_mask_sub_epi8(values, _mm512_movepi8_mask(weights), _mm512_setzero_si512(), values);
  return add(sum, _mm512_madd_epi16(_mm512_maddubs_epi16(_mm512_abs_epi8(weights), negated), _mm512_set1_epi16(1)));
}
#endif

#elif defined(CPU_CAPABILITY_AVX2)

struct Ints {
  __m256i low, high;
};
struct Floats {
  __m256 low, high;
};
using Bytes = Ints;
constexpr int64_t kMostRows = 4;
constexpr int64_t kBlockRows = 4;
constexpr int64_t kBlockTiles = 1;
constexpr int32_t kInt8Offset = 0;

inline Ints broadcast(int32_t value) { return {_mm256_set1_epi32(value), _mm256_set1_epi32(value)}; }
inline Ints multiply(Ints a, int32_t by) {
  const __m256i factor = _mm256_set1_epi32(by);
  return {_mm256_mullo_epi32(a.low, factor), _mm256_mullo_epi32(a.high, factor)};
}
inline Bytes with_offset(Bytes weights) { return weights; }
inline Ints add(Ints a, Ints b) { return {_mm256_add_epi32(a.low, b.low), _mm256_add_epi32(a.high, b.high)}; }
inline Floats zeros() { return {_mm256_setzero_ps(), _mm256_setzero_ps()}; }
inline Bytes load_bytes(const void* from) {
  const auto* at = static_cast<const __m256i*>(from);
  return {_mm256_loadu_si256(at), _mm256_loadu_si256(at + 1)};
}
inline void store_bytes(void* to, Bytes bytes) {
  auto* at = static_cast<__m256i*>(to);
  _mm256_storeu_si256(at, bytes.low);
  _mm256_storeu_si256(at + 1, bytes.high);
}
inline __m256i low_halves(__m256i bytes) { return _mm256_and_si256(bytes, _mm256_set1_epi8(15)); }
inline Bytes low_halves(Bytes bytes) { return {low_halves(bytes.low), low_halves(bytes.high)}; }
inline Bytes high_halves(Bytes bytes) {
  return {low_halves(_mm256_srli_epi16(bytes.low, 4)), low_halves(_mm256_srli_epi16(bytes.high, 4))};
}
inline Floats load_floats(const float* from) { return {_mm256_loadu_ps(from), _mm256_loadu_ps(from + 8)}; }
inline __m256 widen_bfloat16(__m128i bits) {
  return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(bits), 16));
}
inline Floats load_bfloat16(const uint16_t* from) {
  const auto* at = reinterpret_cast<const __m128i*>(from);
  return {widen_bfloat16(_mm_loadu_si128(at)), widen_bfloat16(_mm_loadu_si128(at + 1))};
}
inline Floats load_float16(const uint16_t* from) {
  const auto* at = reinterpret_cast<const __m128i*>(from);
  return {_mm256_cvtph_ps(_mm_loadu_si128(at)), _mm256_cvtph_ps(_mm_loadu_si128(at + 1))};
}
inline Floats load_int8(const int8_t* from) {
  const __m128i bytes = _mm_loadu_si128(reinterpret_cast<const __m128i*>(from));
  return {_mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(bytes)),
          _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_srli_si128(bytes, 8)))};
}
// Puts bits [Place, Place + 2) of each byte above its low four bits in `low`.
template <int Place>
inline __m256i with_high_bits(__m256i low, __m256i high) {
  const __m256i placed = Place < 4 ? _mm256_slli_epi16(high, 4 - Place) : _mm256_srli_epi16(high, Place - 4);
  return _mm256_or_si256(low, _mm256_and_si256(placed, _mm256_set1_epi8(0x30)));
}
template <int Place>
inline Bytes with_high_bits(Bytes low, Bytes high) {
  return {with_high_bits<Place>(low.low, high.low), with_high_bits<Place>(low.high, high.high)};
}
inline Floats multiply(Floats a, Floats b) { return {_mm256_mul_ps(a.low, b.low), _mm256_mul_ps(a.high, b.high)}; }
inline Floats scale(Floats values, float by) { return multiply(values, {_mm256_set1_ps(by), _mm256_set1_ps(by)}); }
inline Floats multiply_add(Floats values, float by, Floats sum) {
  const __m256 factor = _mm256_set1_ps(by);
  return {_mm256_fmadd_ps(values.low, factor, sum.low), _mm256_fmadd_ps(values.high, factor, sum.high)};
}
inline Floats multiply_add(Ints dots, Floats scale, Floats sum) {
  return {_mm256_fmadd_ps(_mm256_cvtepi32_ps(dots.low), scale.low, sum.low),
          _mm256_fmadd_ps(_mm256_cvtepi32_ps(dots.high), scale.high, sum.high)};
}
inline Floats multiply_add(Ints dots, float scale, Floats sum) {
  return multiply_add(dots, {_mm256_set1_ps(scale), _mm256_set1_ps(scale)}, sum);
}
inline void store(float* to, Floats values) {
  _mm256_storeu_ps(to, values.low);
  _mm256_storeu_ps(to + 8, values.high);
}
// Sums pairs of products in 16 bits, which 2 · 127 · 127 doesn't overflow, then pairs of those.
inline __m256i dot_pairs(__m256i sum, __m256i magnitudes, __m256i x) {
  const __m256i pairs = _mm256_maddubs_epi16(magnitudes, x);
  return _mm256_add_epi32(sum, _mm256_madd_epi16(pairs, _mm256_set1_epi16(1)));
}
inline Ints dot_unsigned(Ints sum, Bytes weights, int32_t x) {
  const __m256i values = _mm256_set1_epi32(x);
  return {dot_pairs(sum.low, weights.low, values), dot_pairs(sum.high, weights.high, values)};
}
inline Ints dot_int8(Ints sum, Bytes weights, int32_t x) {
  const __m256i values = _mm256_set1_epi32(x);
  return {dot_pairs(sum.low, _mm256_abs_epi8(weights.low), _mm256_sign_epi8(values, weights.low)),
          dot_pairs(sum.high, _mm256_abs_epi8(weights.high), _mm256_sign_epi8(values, weights.high))};
}

#else  // the obvious version

struct Ints {
  int32_t at[kTileOutputs];
};
struct Floats {
  float at[kTileOutputs];
};
struct Bytes {
  int8_t at[4 * kTileOutputs];
};
constexpr int64_t kMostRows = 4;
constexpr int64_t kBlockRows = 4;
constexpr int64_t kBlockTiles = 1;
constexpr int32_t kInt8Offset = 0;

template <typename Result, typename Function>
inline Result each(Function&& function) {
  Result result;
  for (int64_t i = 0; i < static_cast<int64_t>(sizeof(result.at) / sizeof(result.at[0])); ++i) {
    result.at[i] = function(i);
  }
  return result;
}

inline Ints broadcast(int32_t value) {
  return each<Ints>([&](int64_t) { return value; });
}
inline Ints add(const Ints& a, const Ints& b) {
  return each<Ints>([&](int64_t i) { return a.at[i] + b.at[i]; });
}
inline Ints multiply(const Ints& a, int32_t by) {
  return each<Ints>([&](int64_t i) { return a.at[i] * by; });
}
inline Floats zeros() { return {}; }
inline Bytes with_offset(const Bytes& weights) { return weights; }
inline void store_bytes(void* to, const Bytes& bytes) { __builtin_memcpy(to, bytes.at, sizeof(bytes.at)); }
inline Bytes load_bytes(const void* from) {
  return each<Bytes>([&](int64_t i) { return static_cast<const int8_t*>(from)[i]; });
}
inline Bytes low_halves(const Bytes& bytes) {
  return each<Bytes>([&](int64_t i) { return static_cast<int8_t>(bytes.at[i] & 15); });
}
inline Bytes high_halves(const Bytes& bytes) {
  return each<Bytes>([&](int64_t i) { return static_cast<int8_t>((bytes.at[i] >> 4) & 15); });
}
inline Floats load_floats(const float* from) {
  return each<Floats>([&](int64_t i) { return from[i]; });
}
inline Floats load_bfloat16(const uint16_t* from) {
  return each<Floats>([&](int64_t i) { return __builtin_bit_cast(float, static_cast<uint32_t>(from[i]) << 16); });
}
// Moves the bits to those of a float32, whose exponent is 112 too small then; that holds for subnormal values too.
inline Floats load_float16(const uint16_t* from) {
  return each<Floats>([&](int64_t i) {
    const uint32_t magnitude = static_cast<uint32_t>(from[i] & 0x7fff) << 13;
    const float value = __builtin_bit_cast(float, magnitude) * 0x1p112F;
    return (from[i] & 0x8000) != 0 ? -value : value;
  });
}
inline Floats load_int8(const int8_t* from) {
  return each<Floats>([&](int64_t i) { return static_cast<float>(from[i]); });
}
// Puts bits [Place, Place + 2) of each byte above its low four bits in `low`.
template <int Place>
inline Bytes with_high_bits(const Bytes& low, const Bytes& high) {
  return each<Bytes>([&](int64_t i) { return static_cast<int8_t>(low.at[i] | ((high.at[i] >> Place) & 3) << 4); });
}
inline Floats multiply(const Floats& a, const Floats& b) {
  return each<Floats>([&](int64_t i) { return a.at[i] * b.at[i]; });
}
inline Floats multiply_add(const Floats& values, float by, const Floats& sum) {
  return each<Floats>([&](int64_t i) { return values.at[i] * by + sum.at[i]; });
}
inline Floats scale(const Floats& values, float by) {
  return each<Floats>([&](int64_t i) { return values.at[i] * by; });
}
inline Floats multiply_add(const Ints& dots, const Floats& scale, const Floats& sum) {
  return each<Floats>([&](int64_t i) { return static_cast<float>(dots.at[i]) * scale.at[i] + sum.at[i]; });
}
inline Floats multiply_add(const Ints& dots, float scale, const Floats& sum) {
  return each<Floats>([&](int64_t i) { return static_cast<float>(dots.at[i]) * scale + sum.at[i]; });
}
inline void store(float* to, const Floats& values) {
  for (int64_t i = 0; i < kTileOutputs; ++i) {
    to[i] = values.at[i];
  }
}
inline Ints dot_int8(const Ints& sum, const Bytes& weights, int32_t x) {
  int8_t values[4];
  __builtin_memcpy(values, &x, 4);
  return each<Ints>([&](int64_t i) {
    int32_t total = sum.at[i];
    for (int64_t j = 0; j < 4; ++j) {
      total += weights.at[4 * i + j] * values[j];
    }
    return total;
  });
}
inline Ints dot_unsigned(const Ints& sum, const Bytes& weights, int32_t x) { return dot_int8(sum, weights, x); }

#endif

}  // namespace dlf::ops::DLF_CPU
