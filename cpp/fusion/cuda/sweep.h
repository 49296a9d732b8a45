#pragma once

#include "fusion/cuda/float_math.h"
#include "fusion/cuda/search.h"
#include "fusion/cuda/slice.h"

// The sweeps over a block's tokens. Each leaves the sums of one thread in an array of 32 numbers.
//
// float32 holds seven digits, so the sums are of y = e^{αδ} − 1 with Δ centred, δ = Δ − E_P[Δ]: A = log(1 + E_P[y])
// then keeps its digits however near the expert is to its base. Since E_P[e^{αδ}] >= 1, a token whose probability
// float32 cannot hold adds nothing as long as its e^{αδ} stays below e^kReach. A curve beyond that is `wide`: every α
// has weights of its own, relative to their peak, with exponents in double, one α after another.
namespace dlf::cuda {

constexpr float kReach = 55.0F;
constexpr int kFirstSteps = 8;  // steps of α from 0 in the first sweep

// Layout of the 32 sums: those of value number k are at 3k; in the first sweep these follow.
constexpr int kZeroSums = 24;    // Σpδ, Σpδ²
constexpr int kTargetSums = 27;  // Σqδ, Σqy, Σqyδ; if wide: unused, Σw, Σwδ
constexpr int kTargetPeak = kSweepValues;

// One expert's curve.
struct alignas(16) Curve {
  float centre;        // about E_P[Δ]
  float base_centre;   // about E_Q[Δ]
  float most;          // the largest Δ
  float least;         // the smallest
  float base_peak;     // the base's largest logit
  bool wide;           // weights of this sweep may leave a float's range
  bool target_wide;    // those of Q_t relative to Q do
  double per_base;     // 1 / Σq
  double zero_mean;    // E_P[δ], the error of the centre
  double zero_square;  // E_P[δ²]
  double a;            // a_t = KL(Q_t‖Q)
  double b;            // b_t = KL(Q‖Q_t)
  SearchWarp search;
};

// Calls body(group) for every group of this thread.
template <typename Body>
__device__ __forceinline__ void for_groups(const Slice& slice, Body&& body) {
#pragma unroll 1
  for (int group = static_cast<int>(threadIdx.x); group < slice.groups(); group += kSolverThreads) {
    body(group);
  }
}

// Replaces each number by its largest in the block. `parts` [kNumbers, kSolverWarps] lies in shared memory and may be
// written again after the next barrier.
template <int kNumbers>
__device__ __forceinline__ void largest_of_block(float (&x)[kNumbers], float* parts) {
#pragma unroll
  for (int k = 0; k < kNumbers; ++k) {
    const float most = largest_lane(x[k]);
    if (lane_index() == 0) {
      parts[k * kSolverWarps + warp_index()] = most;
    }
  }
  __syncthreads();
#pragma unroll
  for (int k = 0; k < kNumbers; ++k) {
    x[k] = largest_lane(parts[k * kSolverWarps + lane_index() % kSolverWarps]);
  }
}

// Extremes for a row where tokens were ruled out after they had been counted.
__device__ __noinline__ Extremes extremes_of(Slice slice, int t) {
  Extremes extremes;
  for_groups(slice, [&](int group) {
    const Four large = slice.large(group);
    unsigned out = 0;
#pragma unroll
    for (int j = 0; j < 4; ++j) {
      out |= large.at[j] == -kInfinity ? 1U << j : 0U;
    }
    extremes.add(large, slice.base(t, group, large), slice.delta(t, group, large), out);
  });
  return extremes;
}

// Experts that share a base.
constexpr int kMostShare = 4;
template <int kMost>
struct Sharing {
  int experts[kMost];
  int count = 0;

  __device__ explicit Sharing(int first) {
#pragma unroll
    for (int& expert : experts) {
      expert = first;
    }
  }
};

// Sums Σp, Σq, then ΣpΔ_t, ΣqΔ_t of each expert, under the block's own peaks.
template <int kMost>
__device__ __forceinline__ void sum_means(const Slice& slice, const Sharing<kMost>& sharing, float peak,
                                          float base_peak, float (&x)[4 * kMost]) {
  Slice::Source sources[kMost];
#pragma unroll
  for (int i = 0; i < kMost; ++i) {
    sources[i] = slice.source(sharing.experts[i]);
  }
  for_groups(slice, [&](int group) {
    Four fetched[kMost];
#pragma unroll
    for (int i = 0; i < kMost; ++i) {
      if (i < sharing.count) {
        fetched[i] = slice.fetch(sources[i], group);
      }
    }
    const Four large = slice.large(group);
    const Four base = slice.base(sharing.experts[0], group, large);
    Four p;
    Four q;
#pragma unroll
    for (int j = 0; j < 4; ++j) {
      p.at[j] = weight_of(large.at[j], peak);
      q.at[j] = weight_of(base.at[j], base_peak);
      x[0] += p.at[j];
      x[1] += q.at[j];
    }
#pragma unroll
    for (int i = 0; i < kMost; ++i) {
      if (i < sharing.count) {
        const Four delta = Slice::delta(sources[i], fetched[i], large, base);
#pragma unroll
        for (int j = 0; j < 4; ++j) {
          x[2 + 2 * i] = fmaf(p.at[j], delta.at[j], x[2 + 2 * i]);
          x[3 + 2 * i] = fmaf(q.at[j], delta.at[j], x[3 + 2 * i]);
        }
      }
    }
  });
}

// Adds one token's part of Σpy, Σpyδ, Σpyδ², for one α after another.
struct TokenSums {
  float weight;
  float first;
  float second;

  __device__ TokenSums(float p, float delta) : weight(p), first(p * delta), second(first * delta) {}
  __device__ __forceinline__ void add(float y, float* x) const {
    x[0] = fmaf(weight, y, x[0]);
    x[1] = fmaf(first, y, x[1]);
    x[2] = fmaf(second, y, x[2]);
  }
};

// Adds a token's qδ, qy, qyδ at α = 1.
__device__ __forceinline__ void add_target(float base, float base_peak, float d, float* x) {
  const TokenSums token(weight_of(base, base_peak), d);
  const float y = expm1_fast(d);
  x[0] += token.first;
  x[1] = fmaf(token.weight, y, x[1]);
  x[2] = fmaf(token.first, y, x[2]);
}

// Calls body(token, δ) for every token of this thread, under the large model's weights.
template <typename Body>
__device__ __forceinline__ void for_tokens(const Slice& slice, int t, const Curve& curve, float peak, Body&& body) {
  for_groups(slice, [&](int group) {
    const Four large = slice.large(group);
    const Four delta = slice.delta(t, group, large);
#pragma unroll
    for (int j = 0; j < 4; ++j) {
      const float d = delta.at[j] - curve.centre;
      body(TokenSums(weight_of(large.at[j], peak), d), d);
    }
  });
}

// Peaks and centres of a block's own distributions; those of other blocks differ.
struct BlockMeans {
  float peak;
  float base_peak;
  float centre;       // about E_P[Δ]
  float base_centre;  // about E_Q[Δ]
};

// Sums at α = step, 2·step, …, 8·step, and for the targets. With r = e^{hδ} − 1, y_k − y_{k−1} = r·e^{(k−1)hδ}: the
// sums of number k are of this difference, and add_steps() adds those before it.
__device__ __forceinline__ void sum_steps(const Slice& slice, int t, const BlockMeans& means, float step,
                                          float (&x)[kWarp]) {
  const Slice::Source source = slice.source(t);
  const int begin = static_cast<int>(threadIdx.x);
  Four ahead = begin < slice.groups() ? slice.fetch(source, begin) : Four{};
  for_groups(slice, [&](int group) {
    const Four fetched = ahead;
    ahead = slice.fetch(source, min(group + kSolverThreads, slice.groups() - 1));
    const Four large = slice.large(group);
    const Four base = slice.base(t, group, large);
    const Four delta = Slice::delta(source, fetched, large, base);
#pragma unroll
    for (int j = 0; j < 4; ++j) {
      const float d = delta.at[j] - means.centre;
      const float p = weight_of(large.at[j], means.peak);
      const TokenSums token(p, d);
      const float ratio = expm1_fast(step * d);
      const float square = d * d;
      float rise = p * ratio;
#pragma unroll
      for (int k = 0; k < kFirstSteps; ++k) {
        x[3 * k] += rise;
        x[3 * k + 1] = fmaf(rise, d, x[3 * k + 1]);
        x[3 * k + 2] = fmaf(rise, square, x[3 * k + 2]);
        rise = fmaf(rise, ratio, rise);
      }
      x[kZeroSums] += token.first;
      x[kZeroSums + 1] += token.second;
      add_target(base.at[j], means.base_peak, delta.at[j] - means.base_centre, x + kTargetSums);
    }
  });
}

// Turns the lanes' sums of differences into sums at each α.
__device__ inline float add_steps(float sum) {
#pragma unroll
  for (int distance = 3; distance < 3 * kFirstSteps; distance *= 2) {
    const float before = __shfl_up_sync(kAllLanes, sum, distance);
    sum += lane_index() >= distance && lane_index() < 3 * kFirstSteps ? before : 0.0F;
  }
  return sum;
}

__device__ __forceinline__ void sum_values(const Slice& slice, int t, const Curve& curve, float peak,
                                           float (&x)[kWarp]) {
  const int count = curve.search.value_count;
  for_tokens(slice, t, curve, peak, [&](const TokenSums& token, float d) {
#pragma unroll
    for (int k = 0; k < kSweepValues; ++k) {
      if (k < count) {
        token.add(expm1_fast(curve.search.values[k] * d), x + 3 * k);
      }
    }
  });
}

// Sums Σqδ, Σqy, Σqyδ under the base, at α = 1.
__device__ __forceinline__ void sum_target(const Slice& slice, int t, const Curve& curve, float* x) {
  for_groups(slice, [&](int group) {
    const Four large = slice.large(group);
    const Four delta = slice.delta(t, group, large);
    const Four base = slice.base(t, group, large);
#pragma unroll
    for (int j = 0; j < 4; ++j) {
      add_target(base.at[j], curve.base_peak, delta.at[j] - curve.base_centre, x);
    }
  });
}

__device__ inline double exponent(float logit, double alpha, double delta) { return logit + alpha * delta; }
__device__ inline float wide_weight(double exponent, float peak) {
  return exp2_fast(static_cast<float>((exponent - peak) * 1.4426950408889634));
}

// Sums over a slice's tokens under a model's logits and α: Σw, Σwδ, Σwδ² relative to the largest exponent, which is the
// fourth number.
struct WideSums {
  float at[4];
};
__device__ __noinline__ WideSums sum_wide(Slice slice, int t, bool of_base, float centre, double alpha, float* parts) {
  const auto logits = [&](int group, const Four& large) { return of_base ? slice.base(t, group, large) : large; };
  float peak[1] = {-kInfinity};
  for_groups(slice, [&](int group) {
    const Four large = slice.large(group);
    const Four delta = slice.delta(t, group, large);
    const Four logit = logits(group, large);
#pragma unroll
    for (int j = 0; j < 4; ++j) {
      const double d = static_cast<double>(delta.at[j]) - centre;
      peak[0] = fmaxf(peak[0], static_cast<float>(exponent(logit.at[j], alpha, d)));
    }
  });
  largest_of_block(peak, parts);
  WideSums sums = {{0.0F, 0.0F, 0.0F, peak[0]}};
  for_groups(slice, [&](int group) {
    const Four large = slice.large(group);
    const Four delta = slice.delta(t, group, large);
    const Four logit = logits(group, large);
#pragma unroll
    for (int j = 0; j < 4; ++j) {
      const double d = static_cast<double>(delta.at[j]) - centre;
      const TokenSums token(1.0F, static_cast<float>(d));
      token.add(wide_weight(exponent(logit.at[j], alpha, d), finite_peak(peak[0])), sums.at);
    }
  });
  return sums;
}

}  // namespace dlf::cuda
