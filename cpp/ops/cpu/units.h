#pragma once

#include <ATen/cpu/vec/functional.h>
#include <ATen/cpu/vec/vec.h>

#include <bit>
#include <cstdint>

#include "ops/cpu/rounding.h"

#ifdef __AVX512BF16__
#include <immintrin.h>
#endif

// How products of many rows multiply: by units of 32 bits, each of which has kValues neighbours in a sum. Local to the
// *_kernel.cc file and the instruction set that it is compiled for.
namespace dlf::ops::DLF_CPU {
namespace {

using Vec = at::vec::Vectorized<float>;
using Unit = uint32_t;

// A unit is a float32.
template <typename StoredElement>
struct Singles {
  using Element = StoredElement;
  using Register = Vec;
  static constexpr int64_t kValues = 1;
  static constexpr Unit kValueBits = 0xffffffff;

  static Register load(const Unit* from) { return Vec::loadu(from); }
  static Register broadcast(Unit unit) { return Vec(std::bit_cast<float>(unit)); }
  static Register keep(Register values, Unit /*bits*/) { return values; }
  static Vec multiply_add(Register a, Register b, Vec sum) { return at::vec::fmadd(a, b, sum); }

  // Joins neighbours, of which there are `count`.
  static Unit join(const float* values, int64_t /*count*/) { return std::bit_cast<Unit>(*values); }
  // Joins the elements of neighbouring rows, of which there are `count`.
  static void join(const Element* rows, int64_t /*count*/, int64_t size, Unit* to) {
    for (int64_t i = 0; i < size; ++i) {
      to[i] = std::bit_cast<Unit>(static_cast<float>(rows[i]));
    }
  }
  // Joins weights to a register of units, and makes them what the units hold.
  static void join(Vec (&weights)[kValues], Unit* to) { weights[0].store(to); }
  // Joins neighbours of one row, `units` units.
  static void join_row(const Element* row, int64_t units, Unit* to) {
    for (int64_t i = 0; i < units; ++i) {
      to[i] = std::bit_cast<Unit>(static_cast<float>(row[i]));
    }
  }
};

#ifdef __AVX512BF16__

// A unit is two bfloat16, whose products one instruction adds to a float32.
struct Pairs {
  using Element = c10::BFloat16;
  using Register = __m512i;
  static constexpr int64_t kValues = 2;
  static constexpr Unit kValueBits = 0xffff;

  static Register load(const Unit* from) { return _mm512_loadu_si512(from); }
  static Register broadcast(Unit unit) { return _mm512_set1_epi32(static_cast<int>(unit)); }
  static Register keep(Register values, Unit bits) { return _mm512_and_si512(values, broadcast(bits)); }
  static Vec multiply_add(Register a, Register b, Vec sum) {
    return _mm512_dpbf16_ps(sum, std::bit_cast<__m512bh>(a), std::bit_cast<__m512bh>(b));
  }

  static Unit join(const float* values, int64_t count) {
    return to_bfloat16(values[0]) | (count > 1 ? static_cast<Unit>(to_bfloat16(values[1])) << 16 : 0);
  }
  static void join(const Element* rows, int64_t count, int64_t size, Unit* to) {
    for (int64_t i = 0; i < size; ++i) {
      to[i] = rows[i].x | (count > 1 ? static_cast<Unit>(rows[size + i].x) << 16 : 0);
    }
  }
  static void join(Vec (&weights)[kValues], Unit* to) {
    const auto units = std::bit_cast<__m512i>(_mm512_cvtne2ps_pbh(weights[1], weights[0]));
    _mm512_storeu_si512(to, units);
    weights[0] = _mm512_castsi512_ps(_mm512_slli_epi32(units, 16));
    weights[1] = _mm512_castsi512_ps(_mm512_and_si512(units, _mm512_set1_epi32(static_cast<int>(0xffff0000))));
  }
  static void join_row(const Element* row, int64_t units, Unit* to) {
    __builtin_memcpy(to, row, static_cast<size_t>(units) * sizeof(Unit));
  }
};

using BFloat16Units = Pairs;

#else

using BFloat16Units = Singles<c10::BFloat16>;

#endif

}  // namespace
}  // namespace dlf::ops::DLF_CPU
