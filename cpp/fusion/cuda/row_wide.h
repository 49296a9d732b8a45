#pragma once

#include "fusion/cuda/row_solver.h"

// The first sweep of curves whose weights would leave the range of a float: one value of α at a time, each relative to
// a peak of its own.
namespace dlf::cuda {

// Evaluates the first values and the targets of the wide curves.
template <SolverKind kKind, bool kHeld>
__device__ void RowSolver<kKind, kHeld>::sweep_wide_first() {
#pragma unroll 1
  for (int t = 0; t < experts(); ++t) {
    if (!slice_.chosen(t) || !curves_[t].wide) {
      continue;
    }
    Curve& curve = curves_[t];
    if (threadIdx.x <= kFirstSteps) {
      curve.search.values[threadIdx.x] = static_cast<float>(threadIdx.x) * step(t);
    }
    __syncthreads();
    float* out = exchange(t);
    sweep_wide(t, kFirstSteps + 1);
    float x[4] = {};
    if (curve.target_wide) {
      const WideSums sums = sum_wide(slice_, t, true, curve.base_centre, 1.0, shared_.peaks);
      x[1] = sums.at[0];
      x[2] = sums.at[1];
      if (threadIdx.x == 0) {
        out[kPeaksAt + kTargetPeak] = sums.at[3];
      }
    } else {
      sum_target(slice_, t, curve, x);
    }
    sums_.add(x, out + kTargetSums);
  }
  meet();
  if (owns_curve() && own().wide) {
    take_wide();
  }
  ++round_;
  __syncthreads();
}

// Evaluates the first `count` values of a curve one by one.
template <SolverKind kKind, bool kHeld>
__device__ void RowSolver<kKind, kHeld>::sweep_wide(int t, int count) {
  const Curve& curve = curves_[t];
  float* out = exchange(t);
#pragma unroll 1
  for (int k = 0; k < count; ++k) {
    const WideSums sums = sum_wide(slice_, t, false, curve.centre, curve.search.values[k], shared_.peaks);
    float x[4] = {sums.at[0], sums.at[1], sums.at[2], 0.0F};
    sums_.add(x, out + 3 * k);
    if (threadIdx.x == 0) {
      out[kPeaksAt + k] = sums.at[3];
    }
  }
}

template <SolverKind kKind, bool kHeld>
__device__ void RowSolver<kKind, kHeld>::take_wide() {
  Curve& curve = own();
  const int lane = lane_index();
  int peak_index = -1;
  if (lane < 3 * (kFirstSteps + 1)) {
    peak_index = lane / 3;
  } else if (curve.target_wide && lane > kTargetSums && lane <= kTargetSums + 2) {
    peak_index = kTargetPeak;
  }
  float peak = 0.0F;
  const float mine = total(warp_index(), peak_index, peak);
  const double target_first = __shfl_sync(kAllLanes, mine, kTargetSums);
  const double target_weight = __shfl_sync(kAllLanes, mine, kTargetSums + 1);
  const double target_second = __shfl_sync(kAllLanes, mine, kTargetSums + 2);
  const float target_peak = __shfl_sync(kAllLanes, peak, kTargetSums + 1);
  const PointSums zero = sums_of(mine, 0);
  const int number = lane <= kFirstSteps ? lane : 0;
  const PointSums at = sums_of(mine, number);
  const float point_peak = __shfl_sync(kAllLanes, peak, 3 * number);
  Divergences target;
  if (curve.target_wide) {
    // Q's own mean is base_centre, up to rounding.
    const double mean = target_second / target_weight;
    target = divergences(
        {1.0, target_peak - static_cast<double>(curve.base_peak) + log(target_weight * curve.per_base), mean, 0.0});
  } else {
    target = at_one(curve.per_base, target_first, target_weight, target_second);
  }
  __syncwarp();
  if (first_lane()) {
    curve.zero_mean = zero.first / zero.weight;
    curve.zero_square = zero.second / zero.weight;
    curve.a = target.f;
    curve.b = target.g;
  }
  __syncwarp();
  put_first(wide_point(curve, curve.search.values[number], point_peak, at));
}

}  // namespace dlf::cuda
