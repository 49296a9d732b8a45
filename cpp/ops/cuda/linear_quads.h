#pragma once

#include "ops/cuda/vector.h"
#include "ops/matrix.h"
#include "support/cuda/launch.h"

// Reads every type of weights in the obvious way, four inputs of one channel at a time.
namespace dlf::cuda {

struct Quad {
  float at[4];
};

// Loads four inputs of a row, zeros beyond its end.
template <typename T>
__device__ Quad load_quad(const T* row, int64_t in, int quad) {
  Quad values;
  const T* from = row + 4 * static_cast<int64_t>(quad);
  if (in % 4 == 0) {
    const auto vector = load<T, 4>(from);
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      values.at[i] = to_float(vector.at[i]);
    }
  } else {
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      values.at[i] = 4 * static_cast<int64_t>(quad) + i < in ? to_float(from[i]) : 0.0F;
    }
  }
  return values;
}

// Each type of weights loads inputs 4 * quad .. 4 * quad + 3 of one channel.
template <typename T>
struct RowQuads {
  __device__ static Quad load(const ops::Matrix& matrix, int64_t channel, int quad) {
    return load_quad(static_cast<const T*>(matrix.data) + channel * matrix.in, matrix.in, quad);
  }
};

// Number `index` of tiles' scales or minimums, as float32.
__device__ inline float scale_at(const void* from, DType type, int64_t index) {
  switch (type) {
    case DType::float32:
      return static_cast<const float*>(from)[index];
    case DType::bfloat16:
      return to_float(static_cast<const __nv_bfloat16*>(from)[index]);
    default:
      return to_float(static_cast<const __half*>(from)[index]);
  }
}

// Scale and minimum of a channel of tiles, at an input.
struct Level {
  float scale;
  float zero;
  float minimum;

  __device__ Level(const ops::Matrix& matrix, int64_t channel, int64_t input) : zero(0.0F), minimum(0.0F) {
    const int64_t tile = channel / ops::kTileOutputs;
    const int64_t lane = channel % ops::kTileOutputs;
    const int64_t at = (tile * ops::groups(matrix) + (input >> ops::shift_of(matrix.group))) * ops::kTileOutputs + lane;
    const auto* bytes = static_cast<const int8_t*>(matrix.scale);
    const auto* low_bytes = static_cast<const int8_t*>(matrix.minimum);
    if (matrix.block > 0) {
      const int64_t blocks = ops::padded_inputs(matrix) / matrix.block;
      const int64_t block = (tile * blocks + (input >> ops::shift_of(matrix.block))) * ops::kTileOutputs + lane;
      scale = static_cast<float>(bytes[at]) * scale_at(matrix.block_scale, DType::float16, block);
      if (matrix.origin == ops::Origin::minimum) {
        minimum = static_cast<float>(low_bytes[at]) * scale_at(matrix.block_minimum, DType::float16, block);
      }
      return;
    }
    scale = scale_at(matrix.scale, matrix.scale_type, at);
    if (matrix.origin == ops::Origin::zero) {
      zero = static_cast<float>(low_bytes[at]);
    } else if (matrix.origin == ops::Origin::minimum) {
      minimum = scale_at(matrix.minimum, matrix.scale_type, at);
    }
  }

  __device__ float weight(int value) const { return (static_cast<float>(value) - zero) * scale + minimum; }
};

// The values of a quad in tiles, as stored.
struct Int8Bytes {
  __device__ static void load(const ops::Matrix& matrix, int64_t tile, int64_t lane, int64_t quad, int (&values)[4]) {
    const int64_t place = (tile * (ops::padded_inputs(matrix) / 4) + quad) * ops::kTileOutputs + lane;
    const auto bytes = cuda::load<int8_t, 4>(static_cast<const int8_t*>(matrix.data) + 4 * place);
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      values[i] = bytes.at[i];
    }
  }
};

struct Int4Bytes {
  __device__ static void load(const ops::Matrix& matrix, int64_t tile, int64_t lane, int64_t quad, int (&values)[4]) {
    const int64_t place = (tile * (ops::padded_inputs(matrix) / 8) + quad / 2) * ops::kTileOutputs + lane;
    const auto bytes = cuda::load<uint8_t, 4>(static_cast<const uint8_t*>(matrix.data) + 4 * place);
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      values[i] = bytes.at[i] >> (quad % 2 * 4) & 15;
    }
  }
};

struct Int6Bytes {
  __device__ static void load(const ops::Matrix& matrix, int64_t tile, int64_t lane, int64_t quad, int (&values)[4]) {
    const int64_t groups = ops::padded_inputs(matrix) / ops::kInputGroup;
    const auto* group = static_cast<const uint8_t*>(matrix.data) + (tile * groups + quad / 8) * 6 * 64 + 4 * lane;
    const int64_t reg = quad % 4;
    const int64_t upper = quad % 8 / 4;  // inputs 16 .. 31
    const auto low = cuda::load<uint8_t, 4>(group + reg * 64);
    const auto high = cuda::load<uint8_t, 4>(group + (4 + reg / 2) * 64);
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      values[i] = (low.at[i] >> (4 * upper) & 15) | (high.at[i] >> (reg % 2 * 4 + 2 * upper) & 3) << 4;
    }
  }
};

template <typename Bytes>
struct TileQuads {
  __device__ static Quad load(const ops::Matrix& matrix, int64_t channel, int quad) {
    int bytes[4];
    Bytes::load(matrix, channel / ops::kTileOutputs, channel % ops::kTileOutputs, quad, bytes);
    const Level level(matrix, channel, 4 * static_cast<int64_t>(quad));
    const int offset = matrix.origin == ops::Origin::middle ? ops::middle(matrix.type) : 0;
    Quad values;
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      values.at[i] = level.weight(bytes[i] - offset);
    }
    return values;
  }
};

// Calls body.operator()<Weights>() with the type above that reads matrices of `type`; those of floats are of T.
template <typename T, typename Body>
void for_quads(ops::MatrixType type, Body&& body) {
  switch (type) {
    case ops::MatrixType::int8:
      return body.template operator()<TileQuads<Int8Bytes>>();
    case ops::MatrixType::int6:
      return body.template operator()<TileQuads<Int6Bytes>>();
    case ops::MatrixType::int4:
      return body.template operator()<TileQuads<Int4Bytes>>();
    default:
      return body.template operator()<RowQuads<T>>();
  }
}

}  // namespace dlf::cuda
