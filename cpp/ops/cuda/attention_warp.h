#pragma once

#include "ops/cuda/attention.h"
#include "ops/cuda/vector.h"

// One warp's part of attention: a softmax over some positions and the average of their values; and the merging of
// several such results.
namespace dlf::cuda {

using ops::AttentionArgs;

inline constexpr int kElements = 8;  // elements of a head that a lane holds

using Elements = Vector<float, kElements>;

// 16 bytes at a time, whatever the type.
template <typename T>
struct alignas(16) Raw {
  T at[kElements];
};

// Loads a lane's part of one position's key or value. If head_dim is not a multiple of kElements, rows of the cache are
// not aligned, and the last lane has fewer elements.
template <typename T, bool Vectors>
__device__ Raw<T> load_raw(const T* from, int count) {
  Raw<T> raw;
  if constexpr (Vectors) {
    raw = *reinterpret_cast<const Raw<T>*>(from);
  } else {
#pragma unroll
    for (int i = 0; i < kElements; ++i) {
      raw.at[i] = i < count ? from[i] : from_float<T>(0.0F);
    }
  }
  return raw;
}

// The running softmax of one query: the largest score, and Σ 2^(score - maximum).
struct Softmax {
  float maximum = -INFINITY;
  float total = 0.0F;
};

// A running softmax and a lane's part of Σ 2^(score - maximum) value.
struct State {
  Softmax softmax;
  Elements sums = {};
};

// Factor by which sums relative to `maximum` shrink when they become relative to `other`.
__device__ inline float shrink(float maximum, float other) {
  return maximum == -INFINITY ? 0.0F : exp2f(maximum - other);
}

// Merges two sets of positions. All code merges with this, so that the results are bit-identical.
struct Merge {
  float maximum;
  float a;
  float b;

  __device__ Merge(float maximum_a, float maximum_b)
      : maximum(fmaxf(maximum_a, maximum_b)), a(shrink(maximum_a, maximum)), b(shrink(maximum_b, maximum)) {}

  __device__ float operator()(float of_a, float of_b) const { return fmaf(of_a, a, of_b * b); }
};

// Layout of states in shared memory: one part of a context after another, H heads each.
template <int H, int Lanes>
struct Parts {
  static constexpr int kDim = Lanes * kElements;
  static constexpr int kStride = kDim + 2;  // sums [kElements, Lanes], the maximum, the total
  static constexpr int kSize = H * kStride;

  // Element of a head that sums[i] belongs to.
  __device__ static int element(int i) { return i % Lanes * kElements + i / Lanes; }
};

// One sum of a head, merged over parts.
struct Merged {
  Softmax softmax;
  float sum = 0.0F;

  // `part` is the state of one head, with `dim` sums.
  __device__ void add(const float* part, int dim, int i) {
    const Merge merge(softmax.maximum, part[dim]);
    softmax = {merge.maximum, merge(softmax.total, part[dim + 1])};
    sum = merge(sum, part[i]);
  }
};

// H query heads of one key-value head, their scores capped or not; `Lanes` lanes hold one position's key or value.
template <typename T, int H, int Lanes, bool Vectors, bool Capped>
class AttentionWarp {
 public:
  static constexpr int kTogether = kWarp / Lanes;                            // positions that a warp reads at once
  static constexpr int kLoads = (sizeof(T) == 2 ? 4 : 2) / (H > 1 ? 2 : 1);  // loads in flight together
  static constexpr int kTile = kTogether * kLoads;                           // positions between two rescalings

  __device__ AttentionWarp(const AttentionArgs& args, int row, int kv_head, int first_head, int heads, int end)
      : dim_(args.head_dim),
        begin_(args.window > 0 && end > args.window ? end - args.window : 0),
        end_(end),
        lane_(static_cast<int>(threadIdx.x) % Lanes),
        place_(static_cast<int>(threadIdx.x) % kWarp / Lanes) {
    const int64_t first = kv_head * ops::kCacheBlock * dim_ + lane_ * kElements;
    keys_ = static_cast<const T*>(args.k_cache) + first;
    values_ = static_cast<const T*>(args.v_cache) + first;
    blocks_ = args.table.blocks + args.places.slot_of(row) * args.table.of_slot;
    block_size_ = static_cast<int>(args.kv_heads * ops::kCacheBlock * dim_);
    count_ = min(max(dim_ - lane_ * kElements, 0), kElements);
    constexpr float kLog2E = 1.44269504F;
    cap_ = args.softcap * kLog2E;
    const T* q = static_cast<const T*>(args.q) + static_cast<int64_t>(row) * args.q_stride;
#pragma unroll
    for (int h = 0; h < H; ++h) {
      const int head = first_head + min(h, heads - 1);  // repeats the last one if there are fewer; then unused
#pragma unroll
      for (int i = 0; i < kElements; ++i) {
        const float value = i < count_ ? to_float(q[head * dim_ + lane_ * kElements + i]) : 0.0F;
        queries_[h].at[i] = value * (args.scale * kLog2E);
      }
    }
  }

  __device__ int tiles() const { return (end_ - begin_ + kTile - 1) / kTile; }

  // Adds the tiles [first, last). Each group of lanes that holds one position has a state of its own.
  __device__ void add(int first, int last, State (&states)[H]) const {
    for (int tile = first; tile < last; ++tile) {
      const int position = begin_ + tile * kTile + place_;
      Raw<T> keys[kLoads];
      Raw<T> values[kLoads];
      int64_t places[kLoads];
#pragma unroll
      for (int u = 0; u < kLoads; ++u) {
        places[u] = place_of(position + u * kTogether);
      }
#pragma unroll
      for (int u = 0; u < kLoads; ++u) {
        keys[u] = load(keys_, places[u]);
      }
#pragma unroll
      for (int u = 0; u < kLoads; ++u) {
        values[u] = load(values_, places[u]);
      }
      float scores[H][kLoads];
      score(keys, position, scores);
#pragma unroll
      for (int h = 0; h < H; ++h) {
        soften(scores[h], states[h]);
      }
      average(values, scores, states);
    }
  }

  // Merges the states of the groups of lanes; the first group has the result.
  __device__ void gather(State (&states)[H]) const {
#pragma unroll
    for (int h = 0; h < H; ++h) {
#pragma unroll
      for (int offset = Lanes; offset < kWarp; offset *= 2) {
        Softmax& softmax = states[h].softmax;
        const Merge merge(softmax.maximum, __shfl_xor_sync(kAllLanes, softmax.maximum, offset));
        softmax = {merge.maximum, merge(softmax.total, __shfl_xor_sync(kAllLanes, softmax.total, offset))};
#pragma unroll
        for (int i = 0; i < kElements; ++i) {
          float& sum = states[h].sums.at[i];
          sum = merge(sum, __shfl_xor_sync(kAllLanes, sum, offset));
        }
      }
    }
  }

  // Clears a warp's state in shared memory, where it is kept because registers are few. Each lane of the first group
  // has its own sums there.
  __device__ void clear(float* part) const {
    for (int i = static_cast<int>(threadIdx.x) % kWarp; i < Parts<H, Lanes>::kSize; i += kWarp) {
      part[i] = i % Parts<H, Lanes>::kStride == Parts<H, Lanes>::kDim ? -INFINITY : 0.0F;
    }
    __syncwarp();
  }

  // Merges the result of gather() into `part`.
  __device__ void merge_into(float* part, const State (&states)[H]) const {
    using Layout = Parts<H, Lanes>;
#pragma unroll
    for (int h = 0; h < H; ++h) {
      float* to = part + h * Layout::kStride;
      const Merge merge(to[Layout::kDim], states[h].softmax.maximum);
      const float total = merge(to[Layout::kDim + 1], states[h].softmax.total);
      __syncwarp();
      if (place_ == 0) {
#pragma unroll
        for (int i = 0; i < kElements; ++i) {
          float& sum = to[i * Lanes + lane_];
          sum = merge(sum, states[h].sums.at[i]);
        }
        if (lane_ == 0) {
          to[Layout::kDim] = merge.maximum;
          to[Layout::kDim + 1] = total;
        }
      }
    }
    __syncwarp();
  }

 private:
  // Offset of a position's key or value; -1 if this lane reads nothing of it.
  __device__ int64_t place_of(int position) const {
    if (position >= end_ || count_ == 0) {
      return -1;
    }
    constexpr int kBlock = ops::kCacheBlock;
    return static_cast<int64_t>(blocks_[position / kBlock]) * block_size_ + position % kBlock * dim_;
  }

  __device__ Raw<T> load(const T* from, int64_t place) const {
    if (place >= 0) {
      return load_raw<T, Vectors>(from + place, count_);
    }
    Raw<T> zeros;
#pragma unroll
    for (int i = 0; i < kElements; ++i) {
      zeros.at[i] = from_float<T>(0.0F);
    }
    return zeros;
  }

  __device__ void score(const Raw<T> (&keys)[kLoads], int position, float (&scores)[H][kLoads]) const {
#pragma unroll
    for (int u = 0; u < kLoads; ++u) {
#pragma unroll
      for (int h = 0; h < H; ++h) {
        scores[h][u] = 0.0F;
#pragma unroll
        for (int i = 0; i < kElements; ++i) {
          scores[h][u] = fmaf(queries_[h].at[i], to_float(keys[u].at[i]), scores[h][u]);
        }
      }
    }
#pragma unroll
    for (int offset = Lanes / 2; offset > 0; offset /= 2) {
#pragma unroll
      for (int h = 0; h < H; ++h) {
#pragma unroll
        for (int u = 0; u < kLoads; ++u) {
          scores[h][u] += __shfl_xor_sync(kAllLanes, scores[h][u], offset);
        }
      }
    }
#pragma unroll
    for (int u = 0; u < kLoads; ++u) {
#pragma unroll
      for (int h = 0; h < H; ++h) {
        if constexpr (Capped) {
          scores[h][u] = cap_ * tanhf(scores[h][u] / cap_);
        }
        scores[h][u] = position + u * kTogether < end_ ? scores[h][u] : -INFINITY;
      }
    }
  }

  // Turns scores into weights relative to the new maximum.
  __device__ static void soften(float (&scores)[kLoads], State& state) {
    float maximum = state.softmax.maximum;
#pragma unroll
    for (int u = 0; u < kLoads; ++u) {
      maximum = fmaxf(maximum, scores[u]);
    }
    const float rescale = shrink(state.softmax.maximum, maximum);
    state.softmax.maximum = maximum;
    state.softmax.total *= rescale;
#pragma unroll
    for (int u = 0; u < kLoads; ++u) {
      scores[u] = shrink(scores[u], maximum);
      state.softmax.total += scores[u];
    }
#pragma unroll
    for (int i = 0; i < kElements; ++i) {
      state.sums.at[i] *= rescale;
    }
  }

  __device__ static void average(const Raw<T> (&values)[kLoads], const float (&weights)[H][kLoads],
                                 State (&states)[H]) {
#pragma unroll
    for (int u = 0; u < kLoads; ++u) {
#pragma unroll
      for (int h = 0; h < H; ++h) {
#pragma unroll
        for (int i = 0; i < kElements; ++i) {
          states[h].sums.at[i] = fmaf(weights[h][u], to_float(values[u].at[i]), states[h].sums.at[i]);
        }
      }
    }
  }

  const T* keys_;
  const T* values_;
  const int32_t* blocks_;  // of the slot
  int block_size_;         // elements
  int dim_;
  int begin_;
  int end_;
  int lane_;   // index among the lanes of its position
  int place_;  // index of its position among those read at once
  int count_;  // elements of this lane
  float cap_;  // of scores, in units of log2(e) as they are
  Elements queries_[H];
};

}  // namespace dlf::cuda
