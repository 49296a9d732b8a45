#include <algorithm>

#include "ops/cuda/linear.h"
#include "ops/cuda/linear_any_weights.h"
#include "ops/cuda/linear_epilogue.h"
#include "ops/cuda/linear_plain.h"
#include "ops/cuda/linear_ring.h"
#include "support/cuda/launch.h"

namespace dlf::cuda {
namespace {

using ops::kTileOutputs;

// A block computes the channels of one tile, or two, for up to kLinearRows rows. Its warps take the inputs in turn,
// kStage at a time, and keep Weights::kAhead stages in flight from memory, the first of them before x is ready. x is
// small and stays in the L1 cache.
template <typename T, typename Weights, int Warps>
__global__ void __launch_bounds__(Warps* kWarp, Weights::kWarps / Warps) linear_kernel(LinearArgs args) {
  const Lane lane(threadIdx.x);
  const int warp = static_cast<int>(threadIdx.x) / kWarp;
  const int first_row = static_cast<int>(blockIdx.x) * kLinearRows;
  const int tile = static_cast<int>(blockIdx.y) * Weights::kTiles;
  const int in = static_cast<int>(args.weight.in);
  const bool active = is_active(args, first_row + lane.group);
  const bool any_active = __any_sync(kAllLanes, active) != 0;  // the same in all warps: each has all rows
  const T* x = static_cast<const T*>(args.x) + static_cast<int64_t>(first_row + lane.group) * in + 8 * lane.member;
  const int end = active ? lane.end(in) : 0;
  const Weights weights(args.weight, tile, lane);

  constexpr int kStep = Warps * kStage;
  typename Weights::Stage stages[Weights::kAhead] = {};
  if (any_active) {
#pragma unroll
    for (int s = 0; s < Weights::kAhead; ++s) {
      weights.template load<false>(warp * kStage + s * kStep, stages[s]);
    }
  }
  await_inputs();
  if (!any_active) {
    return;
  }
  float sums[4 * Weights::kTiles] = {};
  // One round uses all stages in flight, and prefetches as many more.
  const auto round = [&]<bool Inside>(int first) {
#pragma unroll
    for (int s = 0; s < Weights::kAhead; ++s) {
      const int input = first + s * kStep;
      const T* from = x + input;
      uint4 values[2] = {};
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        if (Inside ? active : input < end - half * kHalf) {
          values[half] = *reinterpret_cast<const uint4*>(from + half * kHalf);
        }
      }
      weights.multiply(stages[s], 0, values[0], sums);
      weights.multiply(stages[s], 1, values[1], sums);
      weights.template load<Inside>(input + Weights::kAhead * kStep, stages[s]);
    }
  };
  int first = warp * kStage;
  if constexpr (Weights::kUnchecked) {
    for (; first + (2 * Weights::kAhead - 1) * kStep + kStage <= in; first += Weights::kAhead * kStep) {
      round.template operator()<true>(first);
    }
  }
#pragma unroll 1
  for (; first < in; first += Weights::kAhead * kStep) {
    round.template operator()<false>(first);  // what lies beyond the end adds zeros
  }

  constexpr int kOutputs = kTileOutputs * Weights::kTiles;
  constexpr int kSums = kOutputs * kLinearRows;
  float* shared = shared_memory<float>();  // [Warps, kLinearRows, kOutputs]
#pragma unroll
  for (int i = 0; i < 4 * Weights::kTiles; ++i) {
    const int row = 2 * lane.member + i % 2;
    shared[warp * kSums + row * kOutputs + Weights::channel_of(lane, i / 2)] = sums[i];
  }
  __syncthreads();
  for (int element = static_cast<int>(threadIdx.x); element < kSums; element += static_cast<int>(blockDim.x)) {
    const int row = first_row + element / kOutputs;
    const int64_t channel = static_cast<int64_t>(tile) * kTileOutputs + element % kOutputs;
    if (channel < args.weight.out && is_active(args, row)) {
      float total = 0.0F;
      for (int w = 0; w < Warps; ++w) {
        total += shared[w * kSums + element];
      }
      write<T>(args, row, channel, with_bias(args, channel, total * Weights::scale(args.weight, channel)));
    }
  }
}

template <typename T, typename Weights, int Warps>
void start(const LinearArgs& args, int64_t blocks, Stream stream) {
  constexpr size_t kSharedBytes = sizeof(float) * Warps * Weights::kTiles * kTileOutputs * kLinearRows;
  const auto row_blocks = static_cast<unsigned>((args.rows + kLinearRows - 1) / kLinearRows);
  launch_early(linear_kernel<T, Weights, Warps>,
               {dim3(row_blocks, static_cast<unsigned>(blocks)), dim3(Warps * kWarp), kSharedBytes}, stream, args);
}

template <typename T, typename Weights>
void start(const LinearArgs& args, Stream stream) {
  // With few channels, a block needs more warps to keep the device busy; with few inputs, many warps have no work. This
  // must not depend on the number of rows.
  constexpr int64_t kFewBlocks = 256;
  constexpr int64_t kFewInputs = 4 * kStage;
  const int64_t blocks = (ops::tiles(args.weight.out) + Weights::kTiles - 1) / Weights::kTiles;
  if (args.weight.in <= kFewInputs) {
    return start<T, Weights, 4>(args, blocks, stream);
  }
  blocks < kFewBlocks ? start<T, Weights, 16>(args, blocks, stream) : start<T, Weights, 8>(args, blocks, stream);
}

bool uses_tensor_cores(const LinearArgs& args) { return args.dtype != DType::float32 && args.weight.in % 8 == 0; }

// Only large products use the ring: it takes most of a multiprocessor, and small models' products must fit beside it.
bool uses_ring(const LinearArgs& args) {
  constexpr int64_t kLarge = int64_t{48} << 20;
  return uses_tensor_cores(args) && !ops::is_quantized(args.weight.type) &&
         2 * args.weight.out * args.weight.in >= kLarge && linear_has_ring();
}

}  // namespace

bool linear_serves(const LinearArgs& args) {
  return args.rows <= (ops::is_quantized(args.weight.type) ? kQuantizedLinearRows : kLinearRows);
}

bool linear_gates(const LinearArgs& args) { return uses_ring(args); }

void linear(const LinearArgs& args, Stream stream) {
  if (!uses_tensor_cores(args)) {
    return linear_plain(args, stream);
  }
  uses_ring(args) ? linear_ring(args, stream) : linear_direct(args, stream);
}

void linear_direct(const LinearArgs& args, Stream stream) {
  for_half(args.dtype, [&]<typename T>() {
    for_weights<T>(args.weight, [&]<typename Weights>() { start<T, Weights>(args, stream); });
  });
}

}  // namespace dlf::cuda
