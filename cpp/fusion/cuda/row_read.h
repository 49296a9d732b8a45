#pragma once

#include "fusion/cuda/row_solver.h"

// Reads a row's logits: finds bad ones, and the peaks and means that the sweeps need.
namespace dlf::cuda {

// Copies a row without experts.
template <SolverKind kKind, bool kHeld>
__device__ void RowSolver<kKind, kHeld>::copy() {
  for_groups(slice_, [&](int group) { slice_.copy(group); });
  if (cluster_.rank == 0 && threadIdx.x == 0) {
    FusionRecord record = {};
    record.sweeps = 1;
    record.bad_model = kNoBadModel;
    args_.records[row_] = record;
  }
}

// Reads the logits. Every block finds the peaks and means of its own part.
template <SolverKind kKind, bool kHeld>
__device__ void RowSolver<kKind, kHeld>::read() {
  // The buffer that the first exchange leaves free holds the maxima of the warps: three per expert, then two.
  float* maxima = exchange_ + SharedPlan::exchange_floats(experts());
  const int common = 3 * experts();
  const auto keep = [&](int kind, float most) {
    most = largest_lane(most);
    if (first_lane()) {
      maxima[kind * kSolverWarps + warp_index()] = most;
    }
  };
  const auto keep_all = [&](int t, const Extremes& extremes) {
    keep(common + 1, extremes.peak);
    keep(3 * t, extremes.base_peak);
    keep(3 * t + 1, extremes.most);
    keep(3 * t + 2, -extremes.least);
  };
  const auto block_most = [&](int kind) {
    return largest_lane(maxima[kind * kSolverWarps + lane_index() % kSolverWarps]);
  };
  constexpr int kAhead = kHeld ? 2 : 4;
  Slice::Found found;
#pragma unroll 1
  for (int t = 0; t < experts(); ++t) {
    if (slice_.chosen(t)) {
      Extremes extremes;
      slice_.read<kAhead>(t, extremes, found);
      keep_all(t, extremes);
    }
  }
  keep(common, -static_cast<float>(found.bad));
  if (__syncthreads_or(found.late ? 1 : 0) != 0) {
#pragma unroll 1
    for (int t = 0; t < experts(); ++t) {
      if (slice_.chosen(t)) {
        keep_all(t, extremes_of(slice_, t));
      }
    }
    __syncthreads();
  }
  const float peak = block_most(common + 1);
  constexpr int kShare = kKind == SolverKind::one ? 1 : kMostShare;
  constexpr int kApart = kWarp / (4 * kShare);  // lanes from one number of reduce() to the next
#pragma unroll 1
  for (int t = 0; t < experts();) {
    if (!slice_.chosen(t)) {
      ++t;
      continue;
    }
    Sharing<kShare> sharing(t);
    for (; t < experts() && sharing.count < kShare; ++t) {
      if (slice_.chosen(t) && slice_.share_base(t, sharing.experts[0])) {
#pragma unroll
        for (int i = 0; i < kShare; ++i) {
          sharing.experts[i] = i == sharing.count ? t : sharing.experts[i];
        }
        ++sharing.count;
      } else if (slice_.chosen(t)) {
        break;
      }
    }
    const float base_peak = block_most(3 * sharing.experts[0]);
    float x[4 * kShare] = {};
    sum_means(slice_, sharing, finite_peak(peak), finite_peak(base_peak), x);
    sums_.reduce(x, [&](float total) {
      const float weight = __shfl_sync(kAllLanes, total, 0);
      const float base_weight = __shfl_sync(kAllLanes, total, kApart);
#pragma unroll
      for (int i = 0; i < kShare; ++i) {
        const int expert = sharing.experts[i];
        const float first = __shfl_sync(kAllLanes, total, (2 + 2 * i) * kApart);
        const float base_first = __shfl_sync(kAllLanes, total, (3 + 2 * i) * kApart);
        const float most = block_most(3 * expert + 1);
        const float least = -block_most(3 * expert + 2);
        if (first_lane() && i < sharing.count) {
          float* out = exchange(expert);
          out[kMeans] = weight;
          out[kMeans + 1] = first;
          out[kMeans + 2] = base_weight;
          out[kMeans + 3] = base_first;
          out[kPeak] = peak;
          out[kBasePeak] = base_peak;
          out[kMost] = most;
          out[kLeast] = least;
        }
      }
    });
  }
  if (warp_index() == 0) {
    const float bad = block_most(common);
    if (first_lane()) {
      for (int t = 0; t < experts(); ++t) {
        exchange(t)[kBad] = bad;
      }
    }
  }
  __syncthreads();
}

template <SolverKind kKind, bool kHeld>
__device__ void RowSolver<kKind, kHeld>::report_bad() {
  if (cluster_.rank == 0 && threadIdx.x == 0) {
    FusionRecord record = {};
    record.bad_model = shared_.bad;
    record.sweeps = sweeps_;
    args_.records[row_] = record;
  }
  cluster_.sync();  // others may be reading this block's means
}

}  // namespace dlf::cuda
