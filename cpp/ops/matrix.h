#pragma once

#include <cstdint>

#include "support/dtype.h"
#include "support/host_device.h"

namespace dlf::ops {

// How the values of a weight matrix [out, in] are stored; float16 is for CUDA alone.
enum class MatrixType : int8_t { float32, bfloat16, float16, int8, int6, int4 };

// How a stored integer v becomes a weight:
//   middle   v * scale, v signed
//   zero     (v − zero) * scale
//   minimum  v * scale + minimum
enum class Origin : int8_t { middle, zero, minimum };

// Matrices of floats are stored row by row, as in the file that they are mapped from. Integers are stored in tiles of
// 16 output channels, so that a vector register holds the same input of 16 channels, their sums need no final addition
// across the register, and a tile is one stream of memory:
//   int8  [out / 16][in / 4][16][4], signed
//   int4  [out / 16][in / 8][16][4 bytes]: inputs 0 .. 3 in the low halves, 4 .. 7 in the high ones
//   int6  [out / 16][in / 32][6][16][4 bytes]: the low four bits of inputs 4j .. 4j + 3 in the low halves of register
//   j,
//         of inputs 16 + 4j .. in the high halves, j < 4; registers 4 and 5 have the high two bits of registers 0 and
//         1, and of 2 and 3: bits 0 and 1 for the low halves of the first, 2 and 3 for its high ones, then the second
// int4 and int6 store v unsigned; with Origin::middle, v + 8 and v + 32.
//
// Scales, minimums and zero points lie beside them, [out / 16][in / group][16], or [out / 16][16] for a whole channel.
// With blocks they have two levels: a scale is int8 and is multiplied by the float16 block_scale [out / 16][in / block]
// [16], a minimum likewise. Groups and blocks are powers of two; of int8 they have 32 or more. `out` is rounded up
// to whole tiles and `in` to whole groups or blocks; the padding is zero.
inline constexpr int64_t kTileOutputs = 16;
inline constexpr int64_t kInputGroup = 32;  // activations that share a scale
inline constexpr int64_t kHalfGroup = kInputGroup / 2;

struct Matrix {
  const void* data;
  const void* scale;  // null for floats
  int64_t out;
  int64_t in;
  MatrixType type;
  int64_t group;  // weights that share a scale; 0: the whole channel
  DType scale_type = DType::float32;
  Origin origin = Origin::middle;
  const void* minimum = nullptr;        // as scale, or int8 zero points
  int64_t block = 0;                    // weights that share a block_scale; 0: scales have one level
  const void* block_scale = nullptr;    // float16
  const void* block_minimum = nullptr;  // float16
};

DLF_HOST_DEVICE constexpr int64_t round_up(int64_t value, int64_t multiple) {
  return (value + multiple - 1) / multiple * multiple;
}
// Inputs of a tile, the padding included; `group` is the block of scales with two levels.
DLF_HOST_DEVICE constexpr int64_t padded_inputs(int64_t in, int64_t group) {
  return round_up(in, group > kInputGroup ? group : kInputGroup);
}
DLF_HOST_DEVICE constexpr int64_t padded_inputs(const Matrix& matrix) {
  return padded_inputs(matrix.in, matrix.block > 0 ? matrix.block : matrix.group);
}
// Groups of a channel.
DLF_HOST_DEVICE constexpr int64_t groups(const Matrix& matrix) {
  return matrix.group > 0 ? padded_inputs(matrix) / matrix.group : 1;
}
// Index of the group, or block, of an input is `input >> shift_of(size)`, less than 2³¹.
DLF_HOST_DEVICE constexpr int shift_of(int64_t size) {
  int shift = 0;
  while (int64_t{1} << shift < size) {
    ++shift;
  }
  return size > 0 ? shift : 31;
}
DLF_HOST_DEVICE constexpr int64_t tiles(int64_t out) { return (out + kTileOutputs - 1) / kTileOutputs; }

// Whether two matrices differ in their numbers and sizes alone.
constexpr bool stored_alike(const Matrix& a, const Matrix& b) {
  return a.type == b.type && a.group == b.group && a.scale_type == b.scale_type && a.origin == b.origin &&
         a.block == b.block;
}
constexpr bool is_quantized(MatrixType type) {
  return type == MatrixType::int8 || type == MatrixType::int6 || type == MatrixType::int4;
}
constexpr int64_t bits(MatrixType type) {
  return type == MatrixType::int8 ? 8 : type == MatrixType::int6 ? 6 : type == MatrixType::int4 ? 4 : 16;
}
// What to add to a stored signed value of `type` to make it unsigned.
DLF_HOST_DEVICE constexpr int32_t middle(MatrixType type) {
  return type == MatrixType::int4 ? 8 : type == MatrixType::int6 ? 32 : 0;
}

}  // namespace dlf::ops
