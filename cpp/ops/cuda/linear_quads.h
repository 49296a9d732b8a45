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

struct Int8Quads {
  __device__ static Quad load(const ops::Matrix& matrix, int64_t channel, int quad) {
    const int64_t quads = ops::padded_inputs(matrix.in, matrix.group) / 4;
    const int64_t place =
        (channel / ops::kTileOutputs * quads + quad) * ops::kTileOutputs + channel % ops::kTileOutputs;
    const float scale = static_cast<const float*>(matrix.scale)[channel];
    const auto bytes = cuda::load<int8_t, 4>(static_cast<const int8_t*>(matrix.data) + 4 * place);
    Quad values;
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      values.at[i] = static_cast<float>(bytes.at[i]) * scale;
    }
    return values;
  }
};

struct Int4Quads {
  __device__ static Quad load(const ops::Matrix& matrix, int64_t channel, int quad) {
    const int64_t padded = ops::padded_inputs(matrix.in, matrix.group);
    const int64_t tile = channel / ops::kTileOutputs;
    const int64_t word = (tile * (padded / 8) + quad / 2) * ops::kTileOutputs + channel % ops::kTileOutputs;
    const int64_t group = tile * (padded / matrix.group) + 4 * static_cast<int64_t>(quad) / matrix.group;
    const float scale = to_float(
        static_cast<const __nv_bfloat16*>(matrix.scale)[group * ops::kTileOutputs + channel % ops::kTileOutputs]);
    const auto bytes = cuda::load<uint8_t, 4>(static_cast<const uint8_t*>(matrix.data) + 4 * word);
    Quad values;
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const int value = quad % 2 == 0 ? bytes.at[i] & 15 : bytes.at[i] >> 4;
      values.at[i] = static_cast<float>(value - 8) * scale;
    }
    return values;
  }
};

// Calls body.operator()<Weights>() with the type above that reads matrices of `type`; those of floats are of T.
template <typename T, typename Body>
void for_quads(ops::MatrixType type, Body&& body) {
  switch (type) {
    case ops::MatrixType::int8:
      return body.template operator()<Int8Quads>();
    case ops::MatrixType::int4:
      return body.template operator()<Int4Quads>();
    default:
      return body.template operator()<RowQuads<T>>();
  }
}

}  // namespace dlf::cuda
