#pragma once

#include "support/cuda/launch.h"

namespace dlf::cuda {

// The blocks of one cluster. Below sm_90 a cluster is one block.
struct Cluster {
  int rank = 0;  // of this block
  int blocks = 1;

#if !defined(__CUDA_ARCH__) || __CUDA_ARCH__ >= 900
  __device__ Cluster()
      : rank(static_cast<int>(cooperative_groups::this_cluster().block_rank())),
        blocks(static_cast<int>(cooperative_groups::this_cluster().num_blocks())) {}
  // Waits for all threads of the cluster.
  __device__ void sync() const {
    if (blocks > 1) {
      cooperative_groups::this_cluster().sync();
    } else {
      __syncthreads();
    }
  }
  // Address in another block's shared memory of what this block keeps at `shared`.
  template <typename T>
  __device__ T* of(T* shared, int other) const {
    return blocks > 1 ? cooperative_groups::this_cluster().map_shared_rank(shared, static_cast<unsigned>(other))
                      : shared;
  }
#else
  __device__ Cluster() {}
  __device__ void sync() const { __syncthreads(); }
  template <typename T>
  __device__ T* of(T* shared, int /*other*/) const {
    return shared;
  }
#endif
};

}  // namespace dlf::cuda
