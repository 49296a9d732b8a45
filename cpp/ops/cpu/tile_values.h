#pragma once

#include <type_traits>

#include "ops/cpu/tile_dot.h"

// How the values of each type lie in a tile (matrix.h). for_quads() calls body<quad>(bytes) with the eight registers of
// one group of inputs, which Dot multiplies. Local to the *_kernel.cc file and the instruction set that it is
// compiled for.
namespace dlf::ops::DLF_CPU {
namespace {

constexpr int64_t kAhead = 4096;  // bytes of W to prefetch
constexpr int64_t kQuads = kInputGroup / 4;

// Products of bytes that have no sign, and of those of Int8.
struct UnsignedDot {
  static Ints dot(const Ints& sum, const Bytes& weights, int32_t x) { return dot_unsigned(sum, weights, x); }
};
struct SignedDot {
  static Ints dot(const Ints& sum, const Bytes& weights, int32_t x) { return dot_int8(sum, weights, x); }
};

// Quads that lie in order: Values::two<Quad>() has a quad and the next one.
template <typename Values>
struct QuadsInOrder {
  template <typename Body>
  static void for_quads(const char* weights, Body&& body) {
    Values::template two<0>(weights, body);
    Values::template two<2>(weights, body);
    Values::template two<4>(weights, body);
    Values::template two<6>(weights, body);
  }
};

struct Int8 : QuadsInOrder<Int8> {
  using Dot = std::conditional_t<kInt8Offset == 0, SignedDot, UnsignedDot>;
  static constexpr int64_t kGroupBytes = kInputGroup * kTileOutputs;

  static int32_t offset(const Matrix&) { return kInt8Offset; }

  template <int Quad, typename Body>
  static void two(const char* weights, Body& body) {
    __builtin_prefetch(weights + Quad * 64 + kAhead);
    __builtin_prefetch(weights + Quad * 64 + 64 + kAhead);
    body.template operator()<Quad>(with_offset(load_bytes(weights + Quad * 64)));
    body.template operator()<Quad + 1>(with_offset(load_bytes(weights + Quad * 64 + 64)));
  }
};

struct Int4 : QuadsInOrder<Int4> {
  using Dot = UnsignedDot;
  static constexpr int64_t kGroupBytes = kInputGroup * kTileOutputs / 2;

  static int32_t offset(const Matrix& matrix) { return matrix.origin == Origin::middle ? 8 : 0; }

  template <int Quad, typename Body>
  static void two(const char* weights, Body& body) {
    __builtin_prefetch(weights + Quad / 2 * 64 + kAhead);
    const Bytes both = load_bytes(weights + Quad / 2 * 64);
    body.template operator()<Quad>(low_halves(both));
    body.template operator()<Quad + 1>(high_halves(both));
  }
};

struct Int6 {
  using Dot = UnsignedDot;
  static constexpr int64_t kGroupBytes = kInputGroup * kTileOutputs * 6 / 8;

  static int32_t offset(const Matrix& matrix) { return matrix.origin == Origin::middle ? 32 : 0; }

  template <typename Body>
  static void for_quads(const char* weights, Body&& body) {
    for (int64_t line = 0; line < kGroupBytes; line += 64) {
      __builtin_prefetch(weights + line + kAhead);
    }
    const Bytes top[2] = {load_bytes(weights + 4 * 64), load_bytes(weights + 5 * 64)};
    two<0>(weights, top[0], body);
    two<1>(weights, top[0], body);
    two<2>(weights, top[1], body);
    two<3>(weights, top[1], body);
  }

 private:
  template <int Quad, typename Body>
  static void two(const char* weights, const Bytes& top, Body& body) {
    constexpr int kPlace = Quad % 2 * 4;
    const Bytes both = load_bytes(weights + Quad * 64);
    body.template operator()<Quad>(with_high_bits<kPlace>(low_halves(both), top));
    body.template operator()<Quad + 4>(with_high_bits<kPlace + 2>(high_halves(both), top));
  }
};

inline int32_t load_quad(const int8_t* from) {
  int32_t quad;
  __builtin_memcpy(&quad, from, 4);
  return quad;
}

}  // namespace
}  // namespace dlf::ops::DLF_CPU
