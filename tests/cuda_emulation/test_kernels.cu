#include "support/cuda/launch.h"
#include "test_kernels.h"

namespace dlf::cuda::testing {
namespace {

namespace cg = cooperative_groups;

__device__ float warp_sum(float x) {
#pragma unroll
  for (int distance = 16; distance > 0; distance /= 2) {
    x += __shfl_xor_sync(0xffffffffU, x, distance);
  }
  return x;
}

// Returns the block's sum of x[0 ... count) in every thread.
__device__ float block_sum_of(const float* __restrict__ x, int count, float* warps) {
  float sum = 0.0F;
  for (int i = threadIdx.x; i < count; i += blockDim.x) {
    sum += x[i];
  }
  sum = warp_sum(sum);
  if (threadIdx.x % 32 == 0) {
    warps[threadIdx.x / 32] = sum;
  }
  __syncthreads();
  sum = warp_sum(threadIdx.x % 32 < blockDim.x / 32 ? warps[threadIdx.x % 32] : 0.0F);
  return sum;
}

__global__ void __launch_bounds__(1024) block_sum_kernel(SumArgs args) {
  const float sum =
      block_sum_of(args.x + static_cast<int64_t>(blockIdx.x) * args.count, args.count, shared_memory<float>());
  if (threadIdx.x == 0) {
    args.sums[blockIdx.x] = sum;
  }
}

__global__ void cluster_sum_kernel(SumArgs args, bool last_barrier) {
  auto* const shared = shared_memory<float>();
  float* const mine = shared + 32;
  const float sum = block_sum_of(args.x + static_cast<int64_t>(blockIdx.x) * args.count, args.count, shared);
  const auto cluster = cg::this_cluster();
  if (threadIdx.x == 0) {
    *mine = sum;
  }
  cluster.sync();
  if (cluster.block_rank() == 0 && threadIdx.x == 0) {
    float total = 0.0F;
    for (unsigned rank = 0; rank < cluster.num_blocks(); ++rank) {
      total += *cluster.map_shared_rank(mine, rank);
    }
    args.sums[blockIdx.x / cluster.num_blocks()] = total;
  }
  if (last_barrier) {
    cluster.sync();
  }
}

__global__ void rotate_kernel(const int* x, int* y, bool barrier) {
  int* const shared = shared_memory<int>();
  shared[threadIdx.x] = x[threadIdx.x];
  if (barrier) {
    __syncthreads();
  }
  y[threadIdx.x] = shared[(threadIdx.x + 1) % blockDim.x];
}

__global__ void rotate_warp_kernel(const int* x, int* y, bool barrier) {
  int* const shared = shared_memory<int>();
  shared[threadIdx.x] = x[threadIdx.x];
  if (barrier) {
    __syncwarp();
  }
  y[threadIdx.x] = shared[(threadIdx.x + 1) % 32];
}

__global__ void half_waits_for_block_kernel() {
  // Even lanes wait for the block, odd ones for their warp.
  if (threadIdx.x % 2 == 0) {
    __syncthreads();
  } else {
    __syncwarp();
  }
}

__global__ void half_waits_for_warp_kernel() {
  if (threadIdx.x % 2 == 0) {
    __syncwarp();
  } else {
    __ballot_sync(0xffffffffU, 1);
  }
}

__global__ void lane_outside_its_mask_kernel() { __syncwarp(0xfU); }

__global__ void write_beyond_shared_memory_kernel() { shared_memory<int>()[threadIdx.x] = 1; }

__global__ void read_unwritten_kernel(float* y) { *y = *shared_memory<float>(); }

__global__ void early_end_kernel(int* y, int alive) {
  const int thread = static_cast<int>(threadIdx.x);
  if (thread >= alive) {
    return;
  }
  int* const shared = shared_memory<int>();
  shared[thread] = thread;
  __syncthreads();
  const int next = shared[(thread + 1) % alive];
  __syncwarp();
  y[thread] = 1000 * __popc(__ballot_sync(0xffffffffU, 1)) + next;
}

__global__ void add_kernel(const float* x, float value, float* y, int count) {
  const int i = blockIdx.x * blockDim.x + threadIdx.x;
  if (i < count) {
    y[i] = x[i] + value;
  }
}

__global__ void warp_collectives_kernel(int* y) {
  const int lane = threadIdx.x;
  constexpr unsigned kAll = 0xffffffffU;
  y += 8 * lane;
  y[0] = __shfl_sync(kAll, lane, 3);
  y[1] = __shfl_sync(kAll, lane, lane + 1, 8);
  y[2] = __shfl_up_sync(kAll, lane, 2);
  y[3] = __shfl_down_sync(kAll, lane, 2, 16);
  y[4] = static_cast<int>(__reduce_max_sync(kAll, static_cast<unsigned>(lane)));
  y[5] = __any_sync(kAll, lane == 7) + 2 * __all_sync(kAll, lane == 7) + 4 * __all_sync(kAll, lane < 32);
  y[6] = __popc(__match_any_sync(kAll, lane / 5));
  y[7] = static_cast<int>(__shfl_xor_sync(kAll, 0.5 * lane, 1) * 2.0);
}

__global__ void block_votes_kernel(int* y) {
  y += 3 * threadIdx.x;
  y[0] = __syncthreads_count(threadIdx.x >= 3);
  y[1] = __syncthreads_or(threadIdx.x >= 3);
  y[2] = __syncthreads_and(threadIdx.x >= 3);
}

__global__ void divergent_kernel(int* y) {
  const int lane = threadIdx.x;
  int sum = 0;
  if (lane < 8) {
    for (int i = 0; i < 3; ++i) {
      sum += __shfl_sync(0xffU, lane, i);
    }
  } else {
    sum = __reduce_add_sync(0xffffff00U, lane);
  }
  y[lane] = sum + __shfl_xor_sync(0xffffffffU, sum, 8);
}

__global__ void round_trip_kernel(const float* x, float* y, int count) {
  const int i = threadIdx.x;
  y[i] = to_float(from_float<__nv_bfloat16>(x[i]));
  y[count + i] = to_float(from_float<__half>(x[i]));
}

__global__ void empty_kernel() {}

__global__ void copy_early_kernel(const float* x, float* y, int count, Waits waits) {
  const int i = static_cast<int>(blockIdx.x * blockDim.x + threadIdx.x);
  if (waits == Waits::before_reading) {
    await_inputs();
  }
  const float value = i < count ? x[i] : 0.0F;
  if (waits == Waits::after_reading) {
    await_inputs();
  }
  if (i < count) {
    y[i] = value;
  }
}

Shape one_block(unsigned threads, size_t shared_bytes = 0) { return {dim3(1), dim3(threads), shared_bytes}; }

}  // namespace

void block_sum(const SumArgs& args, Stream stream) {
  launch(block_sum_kernel, {dim3(args.blocks), dim3(args.threads), 32 * sizeof(float)}, stream, args);
}
void cluster_sum(const SumArgs& args, int cluster, bool last_barrier, Stream stream) {
  const Shape shape = {dim3(args.blocks), dim3(args.threads), 33 * sizeof(float), static_cast<unsigned>(cluster)};
  launch(cluster_sum_kernel, shape, stream, args, last_barrier);
}
void rotate(const int* x, int* y, bool barrier, Stream stream) {
  launch(rotate_kernel, one_block(128, 512), stream, x, y, barrier);
}
void rotate_warp(const int* x, int* y, bool barrier, Stream stream) {
  launch(rotate_warp_kernel, one_block(32, 128), stream, x, y, barrier);
}
void half_waits_for_block(Stream stream) { launch(half_waits_for_block_kernel, one_block(64), stream); }
void half_waits_for_warp(Stream stream) { launch(half_waits_for_warp_kernel, one_block(64), stream); }
void lane_outside_its_mask(Stream stream) { launch(lane_outside_its_mask_kernel, one_block(64), stream); }
void write_beyond_shared_memory(Stream stream) {
  launch(write_beyond_shared_memory_kernel, one_block(33, 128), stream);
}
void read_unwritten(float* y, Stream stream) { launch(read_unwritten_kernel, one_block(1, 16), stream, y); }
void early_end(int* y, int alive, Stream stream) { launch(early_end_kernel, one_block(96, 384), stream, y, alive); }
void add(const float* x, float value, float* y, int count, Stream stream) {
  launch(add_kernel, {dim3((count + 63) / 64), dim3(64)}, stream, x, value, y, count);
}
void copy_early(const float* x, float* y, int count, Waits waits, Stream stream) {
  launch_early(copy_early_kernel, {dim3((count + 63) / 64), dim3(64)}, stream, x, y, count, waits);
}
void warp_collectives(int* y, Stream stream) { launch(warp_collectives_kernel, one_block(32), stream, y); }
void block_votes(int* y, Stream stream) { launch(block_votes_kernel, one_block(64), stream, y); }
void divergent(int* y, Stream stream) { launch(divergent_kernel, one_block(32), stream, y); }
void round_trip(const float* x, float* y, int count, Stream stream) {
  launch(round_trip_kernel, one_block(count), stream, x, y, count);
}
void launch_shape(unsigned grid, unsigned threads, unsigned shared_bytes, unsigned cluster, Stream stream) {
  launch(empty_kernel, {dim3(grid), dim3(threads), shared_bytes, cluster}, stream);
}

}  // namespace dlf::cuda::testing
