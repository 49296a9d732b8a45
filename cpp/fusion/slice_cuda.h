#pragma once

#include "fusion/reduce_cuda.h"
#include "fusion/solver_cuda.h"

// The part of a row that one block looks after, four tokens at a time.
namespace dlf::cuda {

constexpr float kInfinity = HUGE_VALF;
constexpr float kLargest = 3.402823466e38F;
constexpr float kMostDifference = 1e15F;  // nats; its square and a sum of them stay finite

// Where the numbers of a row lie, the same for all rows.
struct SolverLayout {
  int groups;    // of four tokens, a block
  int resident;  // arrays in shared memory: the large model's, then the differences, then the bases, as far as they fit
  bool aligned;  // all rows can be read 16 bytes at a time
  int base_slot[kMaxExperts];  // bases without repetition: which of them expert t has
  int bases;                   // how many
  int logits_at;               // bytes of shared memory before the arrays
};

struct alignas(16) Four {
  float at[4];
};

__device__ inline float difference(float expert, float base) {
  return fminf(fmaxf(expert - base, -kMostDifference), kMostDifference);
}

// What is not on the chip, or not aligned, or at the end of a row takes long anyway. It stays out of line, so that the
// instructions of the other cases are few: they too have to come from memory first.

// Tokens first, first + 1, … of a row, −inf behind the last.
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

__device__ inline Four load_four(const float* row, int64_t first, int64_t vocab, bool aligned) {
  if (aligned && first + 4 <= vocab) {
    const float4 x = *reinterpret_cast<const float4*>(row + first);
    return {{x.x, x.y, x.z, x.w}};
  }
  return load_ends(row, first, vocab);
}

__device__ __noinline__ Four load_delta(const float* expert, const float* base, int64_t first, int64_t vocab,
                                        bool aligned, Four large) {
  Four x = load_four(expert, first, vocab, aligned);
  const Four y = load_four(base, first, vocab, aligned);
#pragma unroll
  for (int j = 0; j < 4; ++j) {
    x.at[j] = large.at[j] == -kInfinity ? 0.0F : difference(x.at[j], y.at[j]);
  }
  return x;
}

__device__ __noinline__ Four load_base(const float* base, int64_t first, int64_t vocab, bool aligned, Four large) {
  Four x = load_four(base, first, vocab, aligned);
#pragma unroll
  for (int j = 0; j < 4; ++j) {
    x.at[j] = large.at[j] == -kInfinity ? -kInfinity : x.at[j];
  }
  return x;
}

class Slice {
 public:
  __device__ Slice(const FusionArgs& args, const SolverLayout& layout, int row, int block, float* shared)
      : args_(args),
        layout_(layout),
        row_(row),
        chosen_((args.chosen == nullptr ? ~0U : args.chosen[row]) & ((1U << args.expert_count) - 1U)),
        shared_(shared) {
    const int64_t all = (args.vocab + 3) / 4;
    const int64_t first = static_cast<int64_t>(block) * layout.groups;
    begin_ = 4 * first;
    count_ = first >= all ? 0 : static_cast<int>(all - first < layout.groups ? all - first : layout.groups);
  }

  __device__ int groups() const { return count_; }
  __device__ uint32_t chosen() const { return chosen_; }  // bit t: the row uses expert t
  __device__ bool chosen(int t) const { return (chosen_ >> t & 1U) != 0; }

  // Reads all models that the row uses once and keeps what fits. A token that any model rules out gets the large
  // model's −inf; what the others say of it is 0 and −inf from then on. Returns the first bad model, or kNone.
  __device__ int read() const;
  static constexpr int kNone = 1 << 20;

  __device__ Four large(int group) const { return layout_.resident > 0 ? held(0, group) : load(fused(), group); }
  // Δ_t; `large` says which tokens take part.
  __device__ Four delta(int t, int group, const Four& large) const {
    if (1 + t < layout_.resident) {
      return held(1 + t, group);
    }
    return load_delta(of(args_.experts[t]), of(args_.bases[t]), token(group), args_.vocab, layout_.aligned, large);
  }
  __device__ Four base(int t, int group, const Four& large) const {
    const int array = 1 + args_.expert_count + layout_.base_slot[t];
    if (array < layout_.resident) {
      return held(array, group);
    }
    return load_base(of(args_.bases[t]), token(group), args_.vocab, layout_.aligned, large);
  }
  __device__ void write(int group, const Four& x) const {
    const int64_t first = token(group);
    if (layout_.aligned && first + 4 <= args_.vocab) {
      *reinterpret_cast<float4*>(fused() + first) = make_float4(x.at[0], x.at[1], x.at[2], x.at[3]);
    } else {
      store_ends(fused(), first, args_.vocab, x);
    }
  }

 private:
  __device__ const float* of(const Logits& logits) const { return logits.data + row_ * logits.stride; }
  __device__ float* fused() const { return args_.fused + row_ * args_.fused_stride; }
  __device__ Four* place(int array, int group) const {
    return reinterpret_cast<Four*>(shared_) + static_cast<int64_t>(array) * layout_.groups + group;
  }
  __device__ Four held(int array, int group) const { return *place(array, group); }
  __device__ int64_t token(int group) const { return begin_ + 4 * static_cast<int64_t>(group); }
  __device__ Four load(const float* row, int group) const {
    return load_four(row, token(group), args_.vocab, layout_.aligned);
  }

  const FusionArgs& args_;
  const SolverLayout& layout_;
  int row_;
  uint32_t chosen_;
  float* shared_;
  int64_t begin_;
  int count_;
};

__device__ inline int Slice::read() const {
  int bad = kNone;
#pragma unroll 1
  for (int group = static_cast<int>(threadIdx.x); group < count_; group += kSolverThreads) {
    Four large = load(of(args_.large), group);
    bool out[4];
#pragma unroll
    for (int j = 0; j < 4; ++j) {
      bad = large.at[j] < kInfinity ? bad : 0;  // also catches NaN
      out[j] = large.at[j] == -kInfinity;
    }
    bool late = false;  // a token was ruled out after some difference was kept
    Four base = {};
    int base_slot = -1;
#pragma unroll 2
    for (int t = 0; t < args_.expert_count; ++t) {
      if (!chosen(t)) {
        continue;
      }
      const Four expert = load(of(args_.experts[t]), group);
      const bool same = layout_.base_slot[t] == base_slot;
      if (!same) {
        base = load(of(args_.bases[t]), group);
        base_slot = layout_.base_slot[t];
      }
      Four delta;
      Four taken;
#pragma unroll
      for (int j = 0; j < 4; ++j) {
        bad = expert.at[j] < kInfinity ? bad : min(bad, 1 + 2 * t);
        bad = base.at[j] < kInfinity ? bad : min(bad, 2 + 2 * t);
        const bool ruled_out = expert.at[j] == -kInfinity || base.at[j] == -kInfinity;
        late = late || (ruled_out && !out[j]);
        out[j] = out[j] || ruled_out;
        delta.at[j] = out[j] ? 0.0F : difference(expert.at[j], base.at[j]);
        taken.at[j] = out[j] ? -kInfinity : base.at[j];
      }
      if (1 + t < layout_.resident) {
        *place(1 + t, group) = delta;
      }
      const int array = 1 + args_.expert_count + base_slot;
      if (!same && array < layout_.resident) {
        *place(array, group) = taken;
      }
    }
#pragma unroll
    for (int j = 0; j < 4; ++j) {
      large.at[j] = out[j] ? -kInfinity : large.at[j];
    }
    if (layout_.resident > 0) {
      *place(0, group) = large;
    } else {
      write(group, large);
    }
    if (late) {
      for (int j = 0; j < 4; ++j) {
        for (int array = 1; array < layout_.resident && out[j]; ++array) {
          place(array, group)->at[j] = array <= args_.expert_count ? 0.0F : -kInfinity;
        }
      }
    }
  }
  return bad;
}

}  // namespace dlf::cuda
