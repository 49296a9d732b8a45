#pragma once

#include "support/cuda/cluster.h"
#include "support/cuda/warp.h"

// Sums and maxima over the lanes of a warp, the warps of a block and the blocks of a cluster, always in one order.
namespace dlf::cuda {

inline constexpr int kSolverThreads = 512;
inline constexpr int kSolverWarps = kSolverThreads / kWarp;
inline constexpr int kSolverBlocks = 16;  // most blocks of a cluster

// Tells the compiler that an address lies in shared memory, which a function that is not inlined cannot know.
__device__ __forceinline__ void assume_shared([[maybe_unused]] const void* address) {
#ifdef __CUDA_ARCH__
  __builtin_assume(__isShared(address) != 0);
#endif
}

// Halves the numbers at each step: a lane gives away the half that its partner keeps.
template <int kNumbers, int kDistance>
__device__ __forceinline__ void fold(float* x) {
  if constexpr (kNumbers > 1) {
    constexpr int kHalf = kNumbers / 2;
    const bool upper = (lane_index() & kDistance) != 0;
#pragma unroll
    for (int j = 0; j < kHalf; ++j) {
      const float keep = upper ? x[j + kHalf] : x[j];
      const float give = upper ? x[j] : x[j + kHalf];
      x[j] = keep + __shfl_xor_sync(kAllLanes, give, kDistance);
    }
    fold<kHalf, kDistance / 2>(x);
  } else if constexpr (kDistance > 0) {
    x[0] += __shfl_xor_sync(kAllLanes, x[0], kDistance);
    fold<1, kDistance / 2>(x);
  }
}

// Sums several numbers over the lanes of a warp at once: 32 numbers take 31 shuffles, instead of 160 one by one. Lane i
// gets the sum of number i * kNumbers / 32. Overwrites x.
template <int kNumbers>
__device__ __forceinline__ float sum_lanes(float (&x)[kNumbers]) {
  fold<kNumbers, kWarp / 2>(x);
  return x[0];
}

// Largest of a warp's numbers, by the integer instruction: the bits of floats sort like the floats once those of
// negative ones are inverted.
__device__ inline float largest_lane(float x) {
  const int bits = __float_as_int(x);
  const int most = __reduce_max_sync(kAllLanes, bits >= 0 ? bits : bits ^ 0x7fffffff);
  return __int_as_float(most >= 0 ? most : most ^ 0x7fffffff);
}

// Sums a power of two numbers pairwise, which rounds less and waits less than one after the other. Overwrites x, which
// stays in registers because every index is a constant.
template <int kNumbers>
__device__ __forceinline__ float sum_tree(float* x) {
  if constexpr (kNumbers == 1) {
    return x[0];
  } else {
    constexpr int kHalf = kNumbers / 2;
#pragma unroll
    for (int j = 0; j < kHalf; ++j) {
      x[j] += x[j + kHalf];
    }
    return sum_tree<kHalf>(x);
  }
}

// Sums over a block, one set of up to 32 numbers after another. Two buffers take turns: one barrier per set is enough.
struct BlockSums {
  float* parts;  // [2, kSolverWarps, kWarp]
  int turn = 0;

  static constexpr int kFloats = 2 * kSolverThreads;

  // Calls take(sum) in all lanes of one warp, with the sums of the block as sum_lanes() gives them. Other warps see
  // what it writes after the next barrier.
  template <int kNumbers, typename Take>
  __device__ __forceinline__ void reduce(float (&x)[kNumbers], Take&& take) {
    float* buffer = parts + turn % 2 * kSolverThreads;
    buffer[threadIdx.x] = sum_lanes(x);
    __syncthreads();
    if (warp_index() == turn % kSolverWarps) {
      float column[kSolverWarps];
#pragma unroll
      for (int warp = 0; warp < kSolverWarps; ++warp) {
        column[warp] = buffer[warp * kWarp + lane_index()];
      }
      take(sum_tree<kSolverWarps>(column));
    }
    ++turn;
  }
  // Writes the sums of the block to out[0 .. kNumbers − 1].
  template <int kNumbers>
  __device__ __forceinline__ void add(float (&x)[kNumbers], float* out) {
    reduce(x, [&](float total) {
      if (lane_index() % (kWarp / kNumbers) == 0) {
        out[lane_index() / (kWarp / kNumbers)] = total;
      }
    });
  }
};

// Sums number `index` of every block's exchange over the cluster.
__device__ inline float sum_cluster(const Cluster& cluster, float* exchange, int index) {
  float column[kSolverBlocks];
#pragma unroll
  for (int block = 0; block < kSolverBlocks; ++block) {
    // No branch, so that no read waits for another.
    const float x = cluster.of(exchange, block < cluster.blocks ? block : cluster.rank)[index];
    column[block] = block < cluster.blocks ? x : 0.0F;
  }
  return sum_tree<kSolverBlocks>(column);
}

}  // namespace dlf::cuda
