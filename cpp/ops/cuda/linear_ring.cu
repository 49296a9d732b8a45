#include <algorithm>

#include "ops/cuda/gated.h"
#include "ops/cuda/linear_epilogue.h"
#include "ops/cuda/linear_ring.h"
#include "ops/cuda/linear_ring_weights.h"

namespace dlf::cuda {
namespace {

constexpr int kThreads = (kReaders + 1) * kWarp;

// Shared memory of a block: the ring, then two sets of all readers' sums, so that the next tile can begin while the
// last one is added up.
template <typename Weights>
struct Layout {
  static constexpr int kSums = kReaders * kLinearRows * Weights::kChannels;
  static constexpr int kRing = kPlaces * Weights::kPlaceBytes;
  static constexpr size_t kBytes =
      kRing + 2 * kSums * sizeof(float) + Ring::kBytes + PartBarrier<kReaders * kWarp>::kBytes;
};

DLF_HOST_DEVICE int64_t outputs_of(const LinearArgs& args) { return args.gated > 0 ? args.gated : args.weight.out; }

template <typename Weights>
DLF_HOST_DEVICE int tiles_of(const LinearArgs& args) {
  return static_cast<int>((outputs_of(args) + Weights::kOutputs - 1) / Weights::kOutputs);
}

// Each block takes every gridDim.x-th tile. Its last warp fills the ring, the first time before x is ready; the others
// take kStage inputs of each chunk. The number of blocks changes no sum.
template <typename T, typename Weights>
__global__ void __launch_bounds__(kThreads, 1) linear_ring_kernel(LinearArgs args) {
  using Shared = Layout<Weights>;
  const Lane lane(threadIdx.x);
  const int warp = warp_index();
  const int first_row = static_cast<int>(blockIdx.y) * kLinearRows;
  const bool active = is_active(args, first_row + lane.group);
  if (__any_sync(kAllLanes, active) == 0) {  // the same in all warps: each has all rows
    return await_inputs();
  }
  const int in = static_cast<int>(args.weight.in);
  const int tiles = tiles_of<Weights>(args);
  const auto blocks = static_cast<int>(gridDim.x);
  const auto block = static_cast<int>(blockIdx.x);
  const int chunks = (in + kChunk - 1) / kChunk;

  auto* places = shared_memory<unsigned char>();
  auto* sums = reinterpret_cast<float*>(places + Shared::kRing);
  unsigned char* state = places + Shared::kRing + 2 * Shared::kSums * sizeof(float);
  const Ring ring(state);
  PartBarrier<kReaders * kWarp> readers(state + Ring::kBytes);
  if (threadIdx.x == 0) {
    ring.start(kReaders);
    readers.start();
  }
  __syncthreads();

  if (warp == kReaders) {
    const int uses = (tiles - block + blocks - 1) / blocks * chunks;
    const auto fill = [&](int use) {
      const Chunk chunk = {ring, use, places + use % kPlaces * Weights::kPlaceBytes, block + use / chunks * blocks,
                           use % chunks * kChunk};
      Weights::copy(args, chunk, lane_index());
      ring.close(use);
    };
    for (int use = 0; use < min(uses, kPlaces); ++use) {
      fill(use);
    }
    await_inputs();
    for (int use = kPlaces; use < uses; ++use) {
      ring.claim(use);
      fill(use);
    }
    return;
  }

  await_inputs();
  const T* x = static_cast<const T*>(args.x) + static_cast<int64_t>(first_row + lane.group) * in + 8 * lane.member;
  const int end = active ? lane.end(in) : 0;
  const auto load_x = [&](int chunk, uint4(&values)[2]) {
    const int first = chunk * kChunk + warp * kStage;
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      values[half] = first < end - half * kHalf ? *reinterpret_cast<const uint4*>(x + first + half * kHalf) : uint4();
    }
  };
  uint4 next[2];
  load_x(0, next);
  int use = 0;
  for (int tile = block; tile < tiles; tile += blocks) {
    float halves[2][4] = {};  // the last two of each belong to rows that don't exist
    for (int chunk = 0; chunk < chunks; ++chunk, ++use) {
      const int first = chunk * kChunk + warp * kStage;
      const uint4 values[2] = {next[0], next[1]};
      load_x(chunk + 1 < chunks ? chunk + 1 : 0, next);  // loads while the warp waits for weights
      ring.await(use);
      const unsigned char* place = places + use % kPlaces * Weights::kPlaceBytes;
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        if (first + half * kHalf < in) {
          Weights::multiply(place, warp, lane, half, first < lane.end(in) - half * kHalf, values[half], halves[half]);
        }
      }
      ring.release(use);
    }
    float* all = sums + tile / blocks % 2 * Shared::kSums;  // [kReaders, kLinearRows, kChannels]
    constexpr int kTileSums = kLinearRows * Weights::kChannels;
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      all[warp * kTileSums + lane.group * Weights::kChannels + 2 * lane.member + i] = halves[0][i] + halves[1][i];
    }
    readers.sync();
    const auto total = [&](int row, int index) {
      float sum = 0.0F;
#pragma unroll
      for (int w = 0; w < kReaders; ++w) {
        sum += all[w * kTileSums + row * Weights::kChannels + index];
      }
      return with_bias(args, Weights::channel(args, tile, index), sum);
    };
    const int row = static_cast<int>(threadIdx.x) / Weights::kOutputs;
    const int index = static_cast<int>(threadIdx.x) % Weights::kOutputs;
    const int64_t channel = static_cast<int64_t>(tile) * Weights::kOutputs + index;
    if (row < kLinearRows && channel < outputs_of(args) && is_active(args, first_row + row)) {
      float value = total(row, index);
      if constexpr (Weights::kOutputs < Weights::kChannels) {
        const float up = total(row, index + Weights::kOutputs);
        value = gated_of(args.activation, to_float(from_float<T>(value)), to_float(from_float<T>(up)));
      }
      write<T>(args, first_row + row, channel, value);
    }
  }
}

template <typename T, typename Weights>
void start(const LinearArgs& args, Stream stream) {
  static_assert(kLinearRows * Weights::kChannels <= kReaders * kWarp);
  const auto row_blocks = static_cast<unsigned>((args.rows + kLinearRows - 1) / kLinearRows);
  const auto blocks = static_cast<unsigned>(std::min(tiles_of<Weights>(args), multiprocessors()));
  launch_early(linear_ring_kernel<T, Weights>, {dim3(blocks, row_blocks), dim3(kThreads), Layout<Weights>::kBytes},
               stream, args);
}

template <typename T>
void start(const LinearArgs& args, Stream stream) {
  args.gated > 0 ? start<T, RingRows<T, true>>(args, stream) : start<T, RingRows<T, false>>(args, stream);
}

}  // namespace

bool linear_has_ring() { return has_sm90(); }

void linear_ring(const LinearArgs& args, Stream stream) {
  for_half(args.dtype, [&]<typename T>() { start<T>(args, stream); });
}

}  // namespace dlf::cuda
