#include "ops/cuda/linear_plain.h"
#include "ops/cuda/linear_quads.h"

namespace dlf::cuda {
namespace {

using ops::kTileOutputs;
using ops::Matrix;

constexpr int kWarps = 8;    // per block
constexpr int kQuads = 256;  // quads of each channel that a block dequantizes

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

template <typename T, typename Weights>
void start(const LinearArgs& args, Stream stream) {
  const auto row_blocks = static_cast<unsigned>((args.rows + kLinearRows - 1) / kLinearRows);
  const auto channel_blocks = static_cast<unsigned>((args.weight.out + kWarps - 1) / kWarps);
  launch_early(linear_plain_kernel<T, Weights>, {dim3(row_blocks, channel_blocks), dim3(kWarps * kWarp)}, stream, args);
}

template <typename T, typename Weights>
void start_dequantize(const Matrix& weight, void* y, Stream stream) {
  const auto quad_blocks = static_cast<unsigned>((weight.in + 4 * kQuads - 1) / (4 * kQuads));
  launch(dequantize_kernel<T, Weights>,
         {dim3(quad_blocks, static_cast<unsigned>(ops::tiles(weight.out))), dim3(kQuads)}, stream, weight,
         static_cast<T*>(y));
}

}  // namespace

void linear_plain(const LinearArgs& args, Stream stream) {
  for_dtype(args.dtype, [&]<typename T>() {
    for_quads<T>(args.weight.type, [&]<typename Weights>() { start<T, Weights>(args, stream); });
  });
}

void dequantize(const Matrix& weight, void* y, DType dtype, Stream stream) {
  for_dtype(dtype, [&]<typename T>() {
    for_quads<T>(weight.type, [&]<typename Weights>() { start_dequantize<T, Weights>(weight, y, stream); });
  });
}

}  // namespace dlf::cuda
