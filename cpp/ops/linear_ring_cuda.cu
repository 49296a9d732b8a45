#include <algorithm>

#include "ops/linear_epilogue_cuda.h"
#include "ops/linear_ring_cuda.h"
#include "ops/linear_ring_weights_cuda.h"

namespace dlf::cuda {
namespace {

using ops::MatrixType;

constexpr int kThreads = (kReaders + 1) * kWarp;

// What a block keeps in shared memory: the ring, then two sets of all readers' sums, so that the next tile can begin
// while the last one is added up.
template <typename Weights>
struct Layout {
  static constexpr int kSums = kReaders * kLinearRows * Weights::kChannels;
  static constexpr int kRing = kPlaces * Weights::kPlaceBytes;
  static constexpr size_t kBytes =
      kRing + 2 * kSums * sizeof(float) + Ring::kBytes + PartBarrier<kReaders * kWarp>::kBytes;
};

// Each block takes every gridDim.x-th tile. Its last warp fills the ring, the first time before x is there; the others
// take kStage inputs of each chunk. How many blocks there are changes no sum.
template <typename T, typename Weights>
__global__ void __launch_bounds__(kThreads, 1) linear_ring_kernel(LinearArgs args) {
  using Shared = Layout<Weights>;
  const Lane lane(threadIdx.x);
  const int warp = warp_index();
  const int first_row = static_cast<int>(blockIdx.y) * kLinearRows;
  const bool active = is_active(args, first_row + lane.group);
  if (__any_sync(kAllLanes, active) == 0) {  // all warps alike: each has all rows
    return await_inputs();
  }
  const int in = static_cast<int>(args.weight.in);
  const int inputs = Weights::inputs(args.weight);
  const auto tiles = static_cast<int>((args.weight.out + Weights::kChannels - 1) / Weights::kChannels);
  const auto blocks = static_cast<int>(gridDim.x);
  const auto block = static_cast<int>(blockIdx.x);
  const int chunks = (inputs + kChunk - 1) / kChunk;

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
      Weights::copy(args.weight, chunk, lane_index());
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
  int use = 0;
  for (int tile = block; tile < tiles; tile += blocks) {
    float own[Weights::kSums] = {};
    for (int chunk = 0; chunk < chunks; ++chunk, ++use) {
      const int first = chunk * kChunk + warp * kStage;
      uint4 values[2] = {};
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        if (first < end - half * kHalf) {
          values[half] = *reinterpret_cast<const uint4*>(x + first + half * kHalf);
        }
      }
      ring.await(use);
      const unsigned char* place = places + use % kPlaces * Weights::kPlaceBytes;
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        if (first + half * kHalf < in) {
          Weights::multiply(args.weight, place, warp, lane, half, first < lane.end(in) - half * kHalf, values[half],
                            own);
        }
      }
      ring.release(use);
    }
    float* all = sums + tile / blocks % 2 * Shared::kSums;  // [kReaders, kLinearRows, kChannels]
    constexpr int kOutputs = kLinearRows * Weights::kChannels;
#pragma unroll
    for (int i = 0; i < Weights::kSums; ++i) {
      if (Weights::is_used(i)) {
        all[warp * kOutputs + Weights::row_of(lane, i) * Weights::kChannels + Weights::channel_of(lane, i)] = own[i];
      }
    }
    readers.sync();
    const auto element = static_cast<int>(threadIdx.x);
    const int row = first_row + element / Weights::kChannels;
    const int64_t channel = static_cast<int64_t>(tile) * Weights::kChannels + element % Weights::kChannels;
    if (element < kOutputs && channel < args.weight.out && is_active(args, row)) {
      float total = 0.0F;
#pragma unroll
      for (int w = 0; w < kReaders; ++w) {
        total += all[w * kOutputs + element];
      }
      write<T>(args, row, channel, total * Weights::scale(args.weight, channel));
    }
  }
}

template <typename T, typename Weights>
void start(const LinearArgs& args, Stream stream) {
  static_assert(kLinearRows * Weights::kChannels <= kReaders * kWarp);
  const auto tiles = static_cast<int>((args.weight.out + Weights::kChannels - 1) / Weights::kChannels);
  const auto row_blocks = static_cast<unsigned>((args.rows + kLinearRows - 1) / kLinearRows);
  const auto blocks = static_cast<unsigned>(std::min(tiles, multiprocessors()));
  launch_early(linear_ring_kernel<T, Weights>,
               {dim3(blocks, row_blocks), dim3(kThreads), Layout<Weights>::kBytes}, stream, args);
}

template <typename T>
void start(const LinearArgs& args, Stream stream) {
  switch (args.weight.type) {
    case MatrixType::int8:
      return start<T, RingInt8<T>>(args, stream);
    case MatrixType::int4:
      return args.weight.group == kStage ? start<T, RingInt4<T, kStage>>(args, stream)
                                         : start<T, RingInt4<T, kHalf>>(args, stream);
    default:
      return start<T, RingRows<T>>(args, stream);
  }
}

}  // namespace

bool linear_has_ring() { return has_sm90(); }

void linear_ring(const LinearArgs& args, Stream stream) {
  if (args.dtype == DType::bfloat16) {
    start<__nv_bfloat16>(args, stream);
  } else {
    start<__half>(args, stream);
  }
}

}  // namespace dlf::cuda
