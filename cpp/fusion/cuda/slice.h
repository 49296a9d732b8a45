#pragma once

#include "fusion/cuda/float_math.h"
#include "fusion/cuda/reduce.h"
#include "fusion/cuda/solver.h"

// The part of a row that one block handles, four tokens at a time.
namespace dlf::cuda {

constexpr float kMostDifference = 1e15F;  // nats; its square and a sum of them stay finite

// Memory layout of a row, the same for all rows.
struct SolverLayout {
  int groups;    // groups of four tokens per block
  int resident;  // arrays in shared memory: the large model's, then the bases, then the differences, as far as they fit
  bool aligned;  // all rows can be read 16 bytes at a time
  int base_slot[kMaxExperts];  // index of expert t's base among the different bases
  int bases;                   // number of different bases
  int logits_at;               // bytes of shared memory before the arrays
};

struct alignas(16) Four {
  float at[4];
};

__device__ inline float difference(float expert, float base) {
  return fminf(fmaxf(expert - base, -kMostDifference), kMostDifference);
}

// Unaligned rows and the ends of rows take long anyway. They are not inlined, so that the common path has few
// instructions, which must come from memory too.

// Loads tokens first, first + 1, … of a row, with −inf after the last.
__device__ __noinline__ Four load_ends(const float* row, int64_t first, int64_t vocab) {
  Four x;
#pragma unroll
  for (int j = 0; j < 4; ++j) {
    x.at[j] = first + j < vocab ? row[first + j] : -kInfinity;
  }
  return x;
}

__device__ __noinline__ void store_ends(float* row, int64_t first, int64_t vocab, Four x) {
#pragma unroll
  for (int j = 0; j < 4; ++j) {
    if (first + j < vocab) {
      row[first + j] = x.at[j];
    }
  }
}

// Extremes of the logits that a thread has read.
struct Extremes {
  float peak = -kInfinity;       // the large model's largest logit
  float base_peak = -kInfinity;  // the base's
  float most = -kInfinity;       // the largest difference
  float least = kInfinity;       // the smallest

  // Bit j of `out`: token j is ruled out.
  __device__ void add(const Four& large, const Four& base, const Four& delta, unsigned out) {
#pragma unroll
    for (int j = 0; j < 4; ++j) {
      const bool in = (out >> j & 1U) == 0;
      peak = fmaxf(peak, large.at[j]);
      base_peak = fmaxf(base_peak, base.at[j]);
      most = fmaxf(most, in ? delta.at[j] : -kInfinity);
      least = fminf(least, in ? delta.at[j] : kInfinity);
    }
  }
};

class Slice {
 public:
  __device__ Slice(const FusionArgs& args, const RowRule& rule, const SolverLayout& layout, int row, int block,
                   float* shared, bool all_held)
      : args_(args),
        layout_(layout),
        row_(row),
        chosen_(rule.chosen),
        in_place_(rule.large_in_place != 0),
        all_held_(all_held),
        shared_(shared) {
    const int64_t all = (args.vocab + 3) / 4;
    const int64_t first = static_cast<int64_t>(block) * layout.groups;
    begin_ = 4 * first;
    count_ = first >= all ? 0 : static_cast<int>(all - first < layout.groups ? all - first : layout.groups);
    const int64_t whole = args.vocab > begin_ && layout.aligned ? (args.vocab - begin_) / 4 : 0;
    whole_ = static_cast<int>(whole < count_ ? whole : count_);
  }

  __device__ int groups() const { return count_; }
  __device__ uint32_t chosen() const { return chosen_; }  // bit t: the row uses expert t
  __device__ bool chosen(int t) const { return (chosen_ >> t & 1U) != 0; }
  __device__ bool share_base(int t, int other) const { return layout_.base_slot[t] == layout_.base_slot[other]; }

  // What read() finds wrong with the logits.
  struct Found {
    int bad = kNone;    // the first bad model
    bool late = false;  // a token was ruled out that earlier experts had counted
  };
  static constexpr int kNone = 1 << 20;

  // Reads the logits of expert t, and those of the large model and of the base unless already read, and keeps what
  // fits. Call it for all experts of the row in order. A token that any model rules out becomes −inf in the large model
  // and the bases, and 0 in the differences.
  template <int kAhead>  // groups whose logits are loaded at once
  __device__ void read(int t, Extremes& extremes, Found& found) const;

  __device__ Four large(int group) const { return holds(0) ? held(0, group) : load(fused(), group); }
  // Source of Δ_t: the chip, or the expert's logits, which are better prefetched.
  struct Source {
    const float* row;
    int array;
    bool held;
  };
  __device__ Source source(int t) const {
    const int array = 1 + layout_.bases + t;
    return {of(args_.experts[t]), array, holds(array)};
  }
  __device__ Four fetch(const Source& source, int group) const {
    return source.held ? held(source.array, group) : load(source.row, group);
  }
  // Δ_t from what was fetched; `large` says which tokens take part.
  __device__ static Four delta(const Source& source, const Four& fetched, const Four& large, const Four& base) {
    return source.held ? fetched : differences(large, fetched, base);
  }
  __device__ Four delta(int t, int group, const Four& large) const {
    const Source from = source(t);
    const Four fetched = fetch(from, group);
    return from.held ? fetched : differences(large, fetched, base(t, group, large));
  }
  __device__ Four base(int t, int group, const Four& large) const {
    const int array = 1 + layout_.base_slot[t];
    if (holds(array)) {
      return held(array, group);
    }
    Four x = load(of(args_.bases[t]), group);
#pragma unroll
    for (int j = 0; j < 4; ++j) {
      x.at[j] = large.at[j] == -kInfinity ? -kInfinity : x.at[j];
    }
    return x;
  }
  // Writes the large model's logits as the fused ones.
  __device__ void copy(int group) const { write(group, load(of(args_.large), group)); }
  __device__ void write(int group, const Four& x) const {
    if (group < whole_) {
      reinterpret_cast<float4*>(fused() + begin_)[group] = make_float4(x.at[0], x.at[1], x.at[2], x.at[3]);
    } else {
      store_ends(fused(), token(group), args_.vocab, x);
    }
  }

 private:
  __device__ const float* of(const Logits& logits) const { return logits.data + row_ * logits.stride; }
  __device__ float* fused() const { return args_.fused + row_ * args_.fused_stride; }
  __device__ bool holds(int array) const { return all_held_ || array < layout_.resident; }
  __device__ Four* place(int array, int group) const {
    return reinterpret_cast<Four*>(shared_) + array * layout_.groups + group;
  }
  __device__ Four held(int array, int group) const { return *place(array, group); }
  __device__ int64_t token(int group) const { return begin_ + 4 * static_cast<int64_t>(group); }
  __device__ Four load(const float* row, int group) const {
    if (group < whole_) {
      const float4 x = reinterpret_cast<const float4*>(row + begin_)[group];
      return {{x.x, x.y, x.z, x.w}};
    }
    return load_ends(row, token(group), args_.vocab);
  }
  __device__ static Four differences(const Four& large, const Four& expert, const Four& base) {
    Four x;
#pragma unroll
    for (int j = 0; j < 4; ++j) {
      x.at[j] = large.at[j] == -kInfinity ? 0.0F : difference(expert.at[j], base.at[j]);
    }
    return x;
  }

  const FusionArgs& args_;
  const SolverLayout& layout_;
  int row_;
  uint32_t chosen_;
  bool in_place_;  // whether the large model's logits are to be read where the fused ones will go
  bool all_held_;  // a constant in each kernel
  float* shared_;
  int64_t begin_;
  int count_;
  int whole_;  // number of groups, from the first, that can be moved 16 bytes at a time
};

// Overwrites what was kept of tokens that are ruled out now.
__device__ __noinline__ void mend(Four* place, int64_t stride, int arrays, int bases, unsigned out) {
  for (int array = 1; array < arrays; ++array) {
    for (int j = 0; j < 4; ++j) {
      float& held = place[array * stride].at[j];
      held = (out >> j & 1U) == 0 ? held : array <= bases ? -kInfinity : 0.0F;
    }
  }
}

template <int kAhead>
__device__ __forceinline__ void Slice::read(int t, Extremes& extremes, Found& found) const {
  const bool is_first = (chosen_ & ((1U << t) - 1U)) == 0;
  const int slot = layout_.base_slot[t];
  bool new_base = true;
  for (int other = 0; other < t; ++other) {
    new_base = new_base && !(chosen(other) && layout_.base_slot[other] == slot);
  }
  const bool keeps_base = holds(1 + slot);
  const int delta_array = 1 + layout_.bases + t;
  const float* const larges = is_first && !in_place_ ? of(args_.large) : fused();
  const float* const experts = of(args_.experts[t]);
  const float* const bases = of(args_.bases[t]);
#pragma unroll 1
  for (int begin = static_cast<int>(threadIdx.x); begin < count_; begin += kAhead * kSolverThreads) {
    Four large_of[kAhead];
    Four expert_of[kAhead];
    Four base_of[kAhead];
#pragma unroll
    for (int i = 0; i < kAhead; ++i) {
      const int group = begin + i * kSolverThreads;
      if (group < count_) {
        expert_of[i] = load(experts, group);
        base_of[i] = new_base || !keeps_base ? load(bases, group) : held(1 + slot, group);
        large_of[i] = is_first || !holds(0) ? load(larges, group) : held(0, group);
      }
    }
#pragma unroll
    for (int i = 0; i < kAhead; ++i) {
      const int group = begin + i * kSolverThreads;
      if (group >= count_) {
        break;
      }
      Four large = large_of[i];
      Four base = base_of[i];
      Four delta;
      unsigned out = 0;
      bool late = false;
      float none = 0.0F;  // NaN where a logit is not finite
#pragma unroll
      for (int j = 0; j < 4; ++j) {
        none = fmaf(large.at[j], 0.0F, none);
        none = fmaf(base.at[j], 0.0F, none);
        none = fmaf(expert_of[i].at[j], 0.0F, none);
        delta.at[j] = difference(expert_of[i].at[j], base.at[j]);
      }
      if (none == 0.0F) {
        extremes.add(large, base, delta, 0);
      } else {
#pragma unroll
        for (int j = 0; j < 4; ++j) {
          found.bad = large.at[j] < kInfinity ? found.bad : 0;  // also catches NaN
          found.bad = expert_of[i].at[j] < kInfinity ? found.bad : min(found.bad, 1 + 2 * t);
          found.bad = base.at[j] < kInfinity ? found.bad : min(found.bad, 2 + 2 * t);
          const bool ruled_out = expert_of[i].at[j] == -kInfinity || base.at[j] == -kInfinity;
          late = late || (ruled_out && large.at[j] != -kInfinity);
          const bool is_out = ruled_out || large.at[j] == -kInfinity;
          out |= is_out ? 1U << j : 0U;
          large.at[j] = is_out ? -kInfinity : large.at[j];
          base.at[j] = is_out ? -kInfinity : base.at[j];
          delta.at[j] = is_out ? 0.0F : delta.at[j];
        }
        extremes.add(large, base, delta, out);
      }
      if (is_first || late) {
        if (holds(0)) {
          *place(0, group) = large;
        } else {
          write(group, large);
        }
      }
      if (new_base && keeps_base) {
        *place(1 + slot, group) = base;
      }
      if (holds(delta_array)) {
        *place(delta_array, group) = delta;
      }
      if (late && !is_first) {
        found.late = true;
        mend(place(0, group), layout_.groups, layout_.resident, layout_.bases, out);
      }
    }
  }
}

}  // namespace dlf::cuda
