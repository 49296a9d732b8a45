#pragma once

#include "support/cuda/cluster.h"
#include "support/cuda/warp.h"

// Shares results among the blocks that work on one row. All shared numbers are integers, so neither the order of
// additions nor the number of blocks changes a result.
namespace dlf::cuda {

inline constexpr int kRowThreads = 512;  // per block
inline constexpr int kRowWarps = kRowThreads / kWarp;
inline constexpr int kMaxRowBlocks = 8;
inline constexpr int kBinBits = 9;
inline constexpr int kBins = 1 << kBinBits;  // bins of a histogram, one per thread
static_assert(kBins == kRowThreads);

// The first place of a sequence of measures at which their sum reaches a target.
struct Place {
  int index;
  uint64_t before;  // the sum ahead of it
  uint64_t here;    // its own measure
};

// The part of a block's shared memory that the other blocks of the row read. Two copies of a member are used in turns:
// a block may write the one while others still read the other, and each turn has a barrier.
struct RowShared {
  uint32_t low[2][kBins];  // the histogram's sums
  uint32_t high[2][kBins];
  uint64_t shown[2][2][kRowWarps];
  uint64_t warp_sums[kRowWarps];
  uint64_t listed_sums[kRowWarps];  // of the tokens that each warp has listed
  int32_t listed_counts[kRowWarps];
  Place place;
  int32_t token;
};

__device__ inline uint64_t greater(uint64_t a, uint64_t b) { return a > b ? a : b; }
__device__ inline uint64_t lesser(uint64_t a, uint64_t b) { return a < b ? a : b; }

class RowBlocks {
 public:
  __device__ RowBlocks(RowShared* shared, const Cluster& cluster)
      : thread(static_cast<int>(threadIdx.x)),
        lane(lane_index()),
        warp(warp_index()),
        blocks(cluster.blocks),
        rank(cluster.rank),
        cluster_(cluster),
        shared_(shared) {}

  const int thread;
  const int lane;
  const int warp;
  const int blocks;  // of the row
  const int rank;    // of this block among them

  // Waits for all threads of the row.
  __device__ void sync() const { cluster_.sync(); }

  // Address in another block's shared memory of what this block keeps at `pointer`.
  template <typename T>
  __device__ T* at_block(T* pointer, int block) const {
    return cluster_.of(pointer, block);
  }

  // Shows two numbers of each warp, the same in all its lanes, to all threads of the row.
  __device__ void show(uint64_t first, uint64_t second = 0) {
    turn_ ^= 1;
    if (lane == 0) {
      shared_->shown[turn_][0][warp] = first;
      shared_->shown[turn_][1][warp] = second;
    }
    sync();
  }
  // Number that a warp of the row showed; warps are numbered in the order of blocks.
  __device__ uint64_t shown(int which, int row_warp) const {
    return at_block(shared_, row_warp / kRowWarps)->shown[turn_][which][row_warp % kRowWarps];
  }
  __device__ uint64_t sum_shown(int which) const {
    uint64_t sum = 0;
    for (int i = lane; i < blocks * kRowWarps; i += kWarp) {
      sum += shown(which, i);
    }
    return warp_sum(sum);
  }
  __device__ uint64_t max_shown(int which) const {
    uint64_t greatest = 0;
    for (int i = lane; i < blocks * kRowWarps; i += kWarp) {
      greatest = greater(greatest, shown(which, i));
    }
    return warp_max(greatest);
  }

  __device__ static uint64_t warp_sum(uint64_t value) {
    for (int distance = kWarp / 2; distance > 0; distance /= 2) {
      value += __shfl_xor_sync(kAllLanes, value, distance);
    }
    return value;
  }
  __device__ static uint64_t warp_max(uint64_t value) {
    for (int distance = kWarp / 2; distance > 0; distance /= 2) {
      value = greater(value, __shfl_xor_sync(kAllLanes, value, distance));
    }
    return value;
  }

  // Makes a histogram of the row: begin_histogram(), then add() from any thread, then bin_sum() gives each thread its
  // bin's total.
  __device__ void begin_histogram() {
    histogram_turn_ ^= 1;
    shared_->low[histogram_turn_][thread] = 0;
    shared_->high[histogram_turn_][thread] = 0;
    __syncthreads();
  }
  __device__ void add(int bin, uint64_t measure) {
    // Add 64 bits in two halves: the hardware adds 32 bits in shared memory directly, but 64 only in a loop.
    const uint32_t low = static_cast<uint32_t>(measure);
    const uint32_t old = atomicAdd(&shared_->low[histogram_turn_][bin], low);
    const uint32_t high = static_cast<uint32_t>(measure >> 32) + (old + low < old ? 1 : 0);
    if (high != 0) {
      atomicAdd(&shared_->high[histogram_turn_][bin], high);
    }
  }
  __device__ uint64_t bin_sum() {
    sync();
    uint64_t sum = 0;
    for (int block = 0; block < blocks; ++block) {
      const RowShared* other = at_block(shared_, block);
      sum += (uint64_t{other->high[histogram_turn_][thread]} << 32) + other->low[histogram_turn_][thread];
    }
    return sum;
  }

  // Sums of the measures of this block's threads: of those up to this one, and of all.
  struct Sums {
    uint64_t upto;
    uint64_t total;
  };
  __device__ Sums scan(uint64_t measure) {
    uint64_t sum = measure;
    for (int distance = 1; distance < kWarp; distance *= 2) {
      const uint64_t other = __shfl_up_sync(kAllLanes, sum, distance);
      sum += lane >= distance ? other : 0;
    }
    if (lane == kWarp - 1) {
      shared_->warp_sums[warp] = sum;
    }
    __syncthreads();
    Sums sums{sum, 0};
    for (int i = 0; i < kRowWarps; ++i) {
      sums.upto += i < warp ? shared_->warp_sums[i] : 0;
      sums.total += shared_->warp_sums[i];
    }
    return sums;
  }
  // First thread at which the sum reaches a target from 1 to the total. Call it after scan(), before the next scan().
  __device__ Place reach(uint64_t measure, uint64_t upto, uint64_t target) {
    if (upto >= target && upto - measure < target) {
      shared_->place = {thread, upto - measure, measure};
    }
    __syncthreads();
    return shared_->place;
  }

  // Gives all threads of the row the token that a thread of one block found.
  __device__ void tell_token(int32_t token) { shared_->token = token; }
  __device__ int32_t told_token(int block) {
    sync();
    return at_block(shared_, block)->token;
  }

 private:
  const Cluster cluster_;
  RowShared* shared_;
  int turn_ = 0;
  int histogram_turn_ = 0;
};

}  // namespace dlf::cuda
