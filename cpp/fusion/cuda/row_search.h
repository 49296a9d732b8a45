#pragma once

#include "fusion/cuda/row_solver.h"

// Searches every expert's α: sweeps evaluate more of its curve until the answer is known.
namespace dlf::cuda {

// Plans the next values of every curve; returns false if no curve needs any.
template <SolverKind kKind, bool kHeld>
__device__ bool RowSolver<kKind, kHeld>::plan() {
  if (on_grid()) {
    if (owns_search()) {
      plan_grid();
    }
  } else {
    if (owns_search()) {
      own().search.survey();
    }
    __syncthreads();
    examine();
    __syncthreads();
    if (owns_search()) {
      own().search.conclude();
    }
    __syncthreads();
    if (owns_search()) {
      // Where one expert is selected, those that can't be the best needn't be known well; those that tie must be.
      double rival = HUGE_VAL;
      if (by_mean()) {
        for (int t = 0; t < experts(); ++t) {
          rival = solved(t) ? smaller(rival, curves_[t].search.answer_loss()) : rival;
        }
        rival += 2.0 * kTie * own().search.scale();
      }
      own().search.plan(rival);
    }
  }
  if (owns_search() && first_lane()) {
    const SearchWarp& search = own().search;
    float most = 0.0F;
    for (int k = 0; k < search.value_count; ++k) {
      most = fmaxf(most, search.values[k]);
    }
    own().wide = !(most * (own().most - own().centre) <= kReach);
  }
  __syncthreads();
  bool any = false;
  for (int t = 0; t < experts(); ++t) {
    any = any || (solved(t) && curves_[t].search.value_count > 0);
  }
  return any;
}

// Plans the rest of the paper's values of α, up to α_max.
template <SolverKind kKind, bool kHeld>
__device__ void RowSolver<kKind, kHeld>::plan_grid() {
  SearchWarp& search = own().search;
  if (first_lane()) {
    const int begin = kFirstSteps + 1 + (search.sweeps - 1) * kSweepValues;
    const double bound = grid_bound(warp_index());
    int count = 0;
    while (count < kSweepValues && begin + count <= kGridSteps && in_grid(bound, begin + count)) {
      search.values[count] = static_cast<float>(begin + count) * kGridStep;
      ++count;
    }
    search.value_count = count;
  }
  __syncwarp();
}

template <SolverKind kKind, bool kHeld>
__device__ void RowSolver<kKind, kHeld>::search() {
  while (plan()) {
    sweep_values();
    if (owns_search() && own().search.value_count > 0) {
      take_values();
    }
    ++round_;
  }
  if (on_grid() && owns_search()) {
    own().search.survey();
  }
}

// Examines the cells of all curves, shared out among the warps.
template <SolverKind kKind, bool kHeld>
__device__ void RowSolver<kKind, kHeld>::examine() {
  int job = 0;
  for (int t = 0; t < experts(); ++t) {
    for (unsigned rest = solved(t) ? curves_[t].search.candidates() : 0U; rest != 0; rest &= rest - 1) {
      if (job++ % kSolverWarps == warp_index()) {
        curves_[t].search.examine(__ffs(static_cast<int>(rest)) - 1);
      }
    }
  }
}

// Evaluates the planned values of every curve.
template <SolverKind kKind, bool kHeld>
__device__ void RowSolver<kKind, kHeld>::sweep_values() {
#pragma unroll 1
  for (int t = 0; t < experts(); ++t) {
    const Curve& curve = curves_[t];
    const SearchWarp& search = curve.search;
    if (!solved(t) || search.value_count == 0) {
      continue;
    }
    if (curve.wide) {
      sweep_wide(t, search.value_count);
      continue;
    }
    float x[kWarp] = {};
    sum_values(slice_, t, curve, shared_.peak, x);
    sums_.add(x, exchange(t));
  }
  ++sweeps_;
  meet();
}

template <SolverKind kKind, bool kHeld>
__device__ void RowSolver<kKind, kHeld>::take_values() {
  Curve& curve = own();
  const int lane = lane_index();
  const int count = curve.search.value_count;
  float peak = 0.0F;
  const float mine = total(warp_index(), curve.wide && lane < 3 * count ? lane / 3 : -1, peak);
  const int value = lane < count ? lane : 0;
  const PointSums at = sums_of(mine, value);
  const float its_peak = __shfl_sync(kAllLanes, peak, 3 * value);
  const double alpha = curve.search.values[value];
  const CurvePoint point = curve.wide
                               ? wide_point(curve, alpha, its_peak, at)
                               : narrow_point({1.0, curve.zero_mean, curve.zero_square}, shared_.per_weight, alpha, at);
  if (on_grid()) {
    curve.search.append(point);
  } else {
    curve.search.take(point);
  }
}

}  // namespace dlf::cuda
