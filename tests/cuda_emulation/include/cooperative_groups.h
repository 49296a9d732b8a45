#pragma once

#include "cuda_runtime.h"

// The groups that kernels use: the block, and the cluster of blocks.
namespace cooperative_groups {

class thread_block {
 public:
  static void sync() { __syncthreads(); }
  static unsigned thread_rank() { return threadIdx.x + blockDim.x * (threadIdx.y + blockDim.y * threadIdx.z); }
  static unsigned size() { return blockDim.x * blockDim.y * blockDim.z; }
  static unsigned num_threads() { return size(); }
  static uint3 thread_index() { return threadIdx; }
  static dim3 group_index() { return {blockIdx.x, blockIdx.y, blockIdx.z}; }
};
inline thread_block this_thread_block() { return {}; }

class cluster_group {
 public:
  struct arrival_token {};

  static void sync() {
    dlf::emulation::arrive_cluster();
    dlf::emulation::wait_cluster();
  }
  static arrival_token barrier_arrive() {
    dlf::emulation::arrive_cluster();
    return {};
  }
  static void barrier_wait() { dlf::emulation::wait_cluster(); }
  static void barrier_wait(arrival_token&&) { dlf::emulation::wait_cluster(); }
  static unsigned block_rank() { return dlf::emulation::cluster_rank(); }
  static unsigned num_blocks() { return dlf::emulation::cluster_blocks(); }
  static unsigned num_threads() { return num_blocks() * thread_block::size(); }
  static unsigned thread_rank() { return block_rank() * thread_block::size() + thread_block::thread_rank(); }
  static dim3 block_index() { return {block_rank(), 0, 0}; }
  static dim3 dim_blocks() { return {num_blocks(), 1, 1}; }

  // Returns the address of the same variable in another block's shared memory.
  template <typename T>
  static T* map_shared_rank(T* pointer, int rank) {
    return static_cast<T*>(
        dlf::emulation::map_shared(const_cast<void*>(static_cast<const void*>(pointer)), static_cast<unsigned>(rank)));
  }
};
inline cluster_group this_cluster() { return {}; }

}  // namespace cooperative_groups
