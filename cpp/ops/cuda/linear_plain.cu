#include <type_traits>

#include "ops/cuda/linear_plain.h"
#include "ops/cuda/vector.h"

namespace dlf::cuda {
namespace {

using ops::kTileOutputs;
using ops::Matrix;
using ops::MatrixType;

constexpr int kWarps = 8;    // per block
constexpr int kQuads = 256;  // quads of each channel that a block dequantizes

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
struct Rows {
  __device__ static Quad load(const Matrix& matrix, int64_t channel, int quad) {
    return load_quad(static_cast<const T*>(matrix.data) + channel * matrix.in, matrix.in, quad);
  }
};

struct Int8 {
  __device__ static Quad load(const Matrix& matrix, int64_t channel, int quad) {
    const int64_t quads = ops::padded_inputs(matrix.in, matrix.group) / 4;
    const int64_t place = (channel / kTileOutputs * quads + quad) * kTileOutputs + channel % kTileOutputs;
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

struct Int4 {
  __device__ static Quad load(const Matrix& matrix, int64_t channel, int quad) {
    const int64_t padded = ops::padded_inputs(matrix.in, matrix.group);
    const int64_t tile = channel / kTileOutputs;
    const int64_t word = (tile * (padded / 8) + quad / 2) * kTileOutputs + channel % kTileOutputs;
    const int64_t group = tile * (padded / matrix.group) + 4 * static_cast<int64_t>(quad) / matrix.group;
    const float scale =
        to_float(static_cast<const __nv_bfloat16*>(matrix.scale)[group * kTileOutputs + channel % kTileOutputs]);
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

// A warp computes one channel for up to kLinearRows rows.
template <typename T, typename Weights>
__global__ void linear_plain_kernel(LinearArgs args) {
  await_inputs();
  const int lane = static_cast<int>(threadIdx.x) % kWarp;
  const int64_t channel = static_cast<int64_t>(blockIdx.y) * kWarps + threadIdx.x / kWarp;
  const int first_row = static_cast<int>(blockIdx.x) * kLinearRows;
  const Matrix& matrix = args.weight;
  const int quads = static_cast<int>((matrix.in + 3) / 4);
  bool active[kLinearRows];
  bool any = false;
#pragma unroll
  for (int r = 0; r < kLinearRows; ++r) {
    const int row = first_row + r;
    active[r] = row < args.rows && (args.position == nullptr || args.position[row] >= 0);
    any = any || active[r];
  }
  if (!any || channel >= matrix.out) {
    return;
  }
  float sums[kLinearRows] = {};
#pragma unroll 2
  for (int quad = lane; quad < quads; quad += kWarp) {
    const Quad weight = Weights::load(matrix, channel, quad);
#pragma unroll
    for (int r = 0; r < kLinearRows; ++r) {
      if (active[r]) {
        const int64_t row = first_row + r;
        const Quad x = load_quad(static_cast<const T*>(args.x) + row * matrix.in, matrix.in, quad);
#pragma unroll
        for (int i = 0; i < 4; ++i) {
          sums[r] = fmaf(weight.at[i], x.at[i], sums[r]);
        }
      }
    }
  }
  const float bias = args.bias != nullptr ? args.bias[channel] : 0.0F;
#pragma unroll
  for (int r = 0; r < kLinearRows; ++r) {
    if (!active[r]) {
      continue;
    }
    const float total = warp_sum(sums[r]) + bias;
    if (lane == 0) {
      const int64_t place = static_cast<int64_t>(first_row + r) * args.y_stride + channel;
      if (args.y_float) {
        static_cast<float*>(args.y)[place] = total;
      } else {
        static_cast<T*>(args.y)[place] = from_float<T>(total);
      }
    }
  }
}

// A block takes a tile's channels one after the other, kQuads quads of each. Neighbouring threads write neighbouring
// values; the channels that lie between their reads come from the cache later.
template <typename T, typename Weights>
__global__ void dequantize_kernel(Matrix matrix, T* y) {
  const int quad = static_cast<int>(blockIdx.x * kQuads + threadIdx.x);
  if (4 * static_cast<int64_t>(quad) >= matrix.in) {
    return;
  }
  const int64_t first = static_cast<int64_t>(blockIdx.y) * kTileOutputs;
  const int64_t end = min(first + kTileOutputs, matrix.out);
  for (int64_t channel = first; channel < end; ++channel) {
    const Quad values = Weights::load(matrix, channel, quad);
    T* to = y + channel * matrix.in + 4 * static_cast<int64_t>(quad);
    if (matrix.in % 4 == 0) {
      Vector<T, 4> vector;
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        vector.at[i] = from_float<T>(values.at[i]);
      }
      store(to, vector);
    } else {
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        if (4 * static_cast<int64_t>(quad) + i < matrix.in) {
          to[i] = from_float<T>(values.at[i]);
        }
      }
    }
  }
}

}  // namespace

void linear_plain(const LinearArgs& args, Stream stream) {
  const auto row_blocks = static_cast<unsigned>((args.rows + kLinearRows - 1) / kLinearRows);
  const auto channel_blocks = static_cast<unsigned>((args.weight.out + kWarps - 1) / kWarps);
  const Shape shape = {dim3(row_blocks, channel_blocks), dim3(kWarps * kWarp)};
  for_dtype(args.dtype, [&]<typename T>() {
    switch (args.weight.type) {
      case MatrixType::int8:
        return launch_early(linear_plain_kernel<T, Int8>, shape, stream, args);
      case MatrixType::int4:
        return launch_early(linear_plain_kernel<T, Int4>, shape, stream, args);
      default:
        return launch_early(linear_plain_kernel<T, Rows<T>>, shape, stream, args);
    }
  });
}

void dequantize(const Matrix& weight, void* y, DType dtype, Stream stream) {
  const auto quad_blocks = static_cast<unsigned>((weight.in + 4 * kQuads - 1) / (4 * kQuads));
  const Shape shape = {dim3(quad_blocks, static_cast<unsigned>(ops::tiles(weight.out))), dim3(kQuads)};
  for_dtype(dtype, [&]<typename T>() {
    if (weight.type == MatrixType::int8) {
      launch(dequantize_kernel<T, Int8>, shape, stream, weight, static_cast<T*>(y));
    } else {
      launch(dequantize_kernel<T, Int4>, shape, stream, weight, static_cast<T*>(y));
    }
  });
}

}  // namespace dlf::cuda
