#pragma once

#include "support/cuda/warp.h"

// Neighbouring values that a thread moves with one instruction, and sums over a warp.
namespace dlf::cuda {

template <typename T, int N>
struct alignas(sizeof(T) * N) Vector {
  T at[N];
};

// `from` must be aligned to the whole vector.
template <typename T, int N>
__device__ Vector<T, N> load(const T* from) {
  return *reinterpret_cast<const Vector<T, N>*>(from);
}
template <typename T, int N>
__device__ void store(T* to, const Vector<T, N>& values) {
  *reinterpret_cast<Vector<T, N>*>(to) = values;
}

// Fetches into the L1 cache, without waiting.
__device__ inline void prefetch([[maybe_unused]] const void* from) {
#ifdef __CUDACC__
  asm volatile("prefetch.L1 [%0];" : : "l"(from));
#endif
}

// Sum over all lanes, the same in each of them.
__device__ inline float warp_sum(float value) {
  for (int offset = kWarp / 2; offset > 0; offset /= 2) {
    value += __shfl_xor_sync(kAllLanes, value, offset);
  }
  return value;
}

}  // namespace dlf::cuda
