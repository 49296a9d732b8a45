#pragma once

#include <cstdint>

#include "support/host_device.h"

namespace dlf::ops {

// How a weight matrix [out, in] is stored; float16 is for CUDA alone.
enum class MatrixType : int8_t { float32, bfloat16, float16, int8, int4 };

// Matrices of floats are stored row by row, as in the file that they are mapped from. int8 and int4 ones are stored in
// tiles of 16 output channels, so that a vector register holds the same input of 16 channels, their sums need no final
// addition across the register, and a tile is one stream of memory:
//   int8  data [out / 16][in / 4][16][4], values −127 .. 127; scale float32 [out / 16][16]
//   int4  data [out / 16][in / 8][16][4 bytes], value + 8 of inputs 0 .. 3 in the low halves and of 4 .. 7 in the high
//         ones; scale bfloat16 [out / 16][in / group][16]
// with `out` rounded up to whole tiles and `in` to whole groups, the padding being zero. A weight is value * scale.
inline constexpr int64_t kTileOutputs = 16;
inline constexpr int64_t kInputGroup = 32;  // activations that share a scale

struct Matrix {
  const void* data;
  const void* scale;  // null for floats
  int64_t out;
  int64_t in;
  MatrixType type;
  int64_t group;  // weights that share a scale; 0: the whole channel
};

DLF_HOST_DEVICE constexpr int64_t round_up(int64_t value, int64_t multiple) {
  return (value + multiple - 1) / multiple * multiple;
}
// Inputs of a tile, the padding included.
DLF_HOST_DEVICE constexpr int64_t padded_inputs(int64_t in, int64_t group) {
  return round_up(in, group > kInputGroup ? group : kInputGroup);
}
DLF_HOST_DEVICE constexpr int64_t tiles(int64_t out) { return (out + kTileOutputs - 1) / kTileOutputs; }
constexpr bool is_quantized(MatrixType type) { return type == MatrixType::int8 || type == MatrixType::int4; }

}  // namespace dlf::ops
