#include <algorithm>

#include "ops/linear_cuda.h"
#include "ops/linear_plain_cuda.h"
#include "ops/linear_weights_cuda.h"
#include "support/cuda/launch.h"

namespace dlf::cuda {
namespace {

using ops::kTileOutputs;
using ops::MatrixType;

constexpr int kMaxWarps = 16;
constexpr int kTileSums = kTileOutputs * kLinearRows;  // that a block makes

__device__ bool is_active(const LinearArgs& args, int row) {
  return row < args.rows && (args.position == nullptr || args.position[row] >= 0);
}

template <typename T>
__device__ void write(const LinearArgs& args, int row, int64_t channel, float value) {
  value += args.bias != nullptr ? args.bias[channel] : 0.0F;
  const int64_t place = static_cast<int64_t>(row) * args.y_stride + channel;
  if (args.y_float) {
    static_cast<float*>(args.y)[place] = value;
  } else {
    static_cast<T*>(args.y)[place] = from_float<T>(value);
  }
}

// A block makes 16 channels of up to kLinearRows rows; its warps take the inputs in turn, kStage at a time, and keep
// Weights::kAhead stages on their way from memory, the first of them before x is there. x is small and stays in the
// first cache.
template <typename T, typename Weights>
__global__ void __launch_bounds__(kMaxWarps* kWarp, 2) linear_kernel(LinearArgs args) {
  const Lane lane(threadIdx.x);
  const int warp = static_cast<int>(threadIdx.x) / kWarp;
  const int warps = static_cast<int>(blockDim.x) / kWarp;
  const int first_row = static_cast<int>(blockIdx.x) * kLinearRows;
  const int tile = static_cast<int>(blockIdx.y);
  const int in = static_cast<int>(args.weight.in);
  const bool active = is_active(args, first_row + lane.group);
  const bool any_active = __any_sync(kAllLanes, active) != 0;  // all warps alike: each has all rows
  const T* x = static_cast<const T*>(args.x) + static_cast<int64_t>(first_row + lane.group) * in + 8 * lane.member;
  const int end = active ? lane.end(in) : 0;
  const Weights weights(args.weight, tile, lane);

  const int step = warps * kStage;
  typename Weights::Stage stages[Weights::kAhead] = {};
  if (any_active) {
#pragma unroll
    for (int s = 0; s < Weights::kAhead; ++s) {
      weights.load(warp * kStage + s * step, stages[s]);
    }
  }
  await_inputs();
  if (!any_active) {
    return;
  }
  float sums[4] = {0.0F, 0.0F, 0.0F, 0.0F};
  for (int first = warp * kStage; first < in; first += Weights::kAhead * step) {
#pragma unroll
    for (int s = 0; s < Weights::kAhead; ++s) {  // the last ones may lie beyond the end and add zeros
      const int input = first + s * step;
      const T* from = x + input;
      uint4 values[2] = {};
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        if (input < end - half * kHalf) {
          values[half] = *reinterpret_cast<const uint4*>(from + half * kHalf);
        }
      }
      weights.multiply(stages[s], 0, values[0], sums);
      weights.multiply(stages[s], 1, values[1], sums);
      weights.load(input + Weights::kAhead * step, stages[s]);
    }
  }

  float* shared = shared_memory<float>();  // [warps, kLinearRows, kTileOutputs]
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    const int row = 2 * lane.member + i % 2;
    shared[warp * kTileSums + row * kTileOutputs + Weights::channel_of(lane, i / 2)] = sums[i];
  }
  __syncthreads();
  const int element = static_cast<int>(threadIdx.x);
  const int row = first_row + element / kTileOutputs;
  const int64_t channel = static_cast<int64_t>(tile) * kTileOutputs + element % kTileOutputs;
  if (element < kTileSums && channel < args.weight.out && is_active(args, row)) {
    float total = 0.0F;
    for (int w = 0; w < warps; ++w) {
      total += shared[w * kTileSums + element];
    }
    write<T>(args, row, channel, total * Weights::scale(args.weight, channel));
  }
}

template <typename T, typename Weights>
void start(const LinearArgs& args, Stream stream) {
  // Few channels need more warps each to keep all of the device busy. This must not depend on the number of rows.
  constexpr int64_t kFewTiles = 256;
  const int64_t tiles = ops::tiles(args.weight.out);
  const int most = tiles < kFewTiles ? kMaxWarps : kMaxWarps / 2;
  const int stages = static_cast<int>((args.weight.in + kStage - 1) / kStage);
  const int warps = std::max(kTileSums / kWarp, std::min(most, stages));
  const auto row_blocks = static_cast<unsigned>((args.rows + kLinearRows - 1) / kLinearRows);
  launch_early(linear_kernel<T, Weights>,
               {dim3(row_blocks, static_cast<unsigned>(tiles)), dim3(static_cast<unsigned>(warps * kWarp)),
                sizeof(float) * static_cast<size_t>(warps * kTileSums)},
               stream, args);
}

template <typename T>
void start(const LinearArgs& args, Stream stream) {
  switch (args.weight.type) {
    case MatrixType::int8:
      return start<T, Int8Weights<T>>(args, stream);
    case MatrixType::int4:
      return start<T, Int4Weights<T>>(args, stream);
    default:
      return start<T, RowWeights<T>>(args, stream);
  }
}

}  // namespace

bool linear_serves(const LinearArgs& args) {
  return args.rows <= (ops::is_quantized(args.weight.type) ? kQuantizedLinearRows : kLinearRows);
}

void linear(const LinearArgs& args, Stream stream) {
  if (args.dtype == DType::float32 || args.weight.in % 8 != 0) {
    return linear_plain(args, stream);
  }
  if (args.dtype == DType::bfloat16) {
    start<__nv_bfloat16>(args, stream);
  } else {
    start<__half>(args, stream);
  }
}

}  // namespace dlf::cuda
