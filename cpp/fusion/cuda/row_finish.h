#pragma once

#include "fusion/cuda/row_solver.h"

// The end of a row: its weights, the fused logits and the record.
namespace dlf::cuda {

template <SolverKind kKind, bool kHeld>
__device__ void RowSolver<kKind, kHeld>::combine() {
  __syncthreads();
  if (threadIdx.x == 0) {
    // Experts that all reach the targets tie up to rounding: take the first.
    int best = __ffs(static_cast<int>(solved())) - 1;
    for (int t = best + 1; t < experts() && best >= 0 && by_mean(); ++t) {
      const double tie = kTie * curves_[best].search.scale();
      const bool better = solved(t) && curves_[t].search.answer_loss() < curves_[best].search.answer_loss() - tie;
      best = better ? t : best;
    }
    shared_.selected = by_mean() ? best : -1;
    for (int t = 0; t < experts(); ++t) {
      double alpha = slice_.chosen(t) ? given(t) : 0.0F;
      if (solved(t)) {
        const double alone = curves_[t].search.answer().alpha;
        alpha = !by_mean() ? alone / __popc(solved()) : t == best ? alone : 0.0;  // `joint` starts at the first
      }
      shared_.alpha[t] = static_cast<float>(alpha);
    }
  }
  __syncthreads();
}

// Fuses the logits. The other blocks send their sums to the first, which writes the record.
template <SolverKind kKind, bool kHeld>
__device__ void RowSolver<kKind, kHeld>::finish() {
  constexpr int kNumbers = 8;  // per block: three sums and, last, its peak
  const Mixture mixture = {shared_.alpha, curves_, experts(), Mixture::is_wide(shared_.alpha, curves_, experts())};
  float peak = mixture.wide ? mixture.peak(slice_, shared_.peaks) : shared_.peak;
  float x[4] = {};
  fuse(slice_, mixture, peak, x);
  float* slot =
      cluster_.of(exchange_ + round_ % 2 * SharedPlan::exchange_floats(experts()), 0) + cluster_.rank * kNumbers;
  sums_.add(x, slot);
  if (threadIdx.x == 0) {
    slot[kNumbers - 1] = peak;
  }
  meet();
  if (cluster_.rank != 0 || warp_index() != 0) {
    return;
  }
  const int lane = lane_index();
  const bool speaks = lane < cluster_.blocks;
  const float* said = slot + (speaks ? lane : 0) * kNumbers;
  peak = finite_peak(largest_lane(speaks ? said[kNumbers - 1] : -kInfinity));
  const float scale = !speaks ? 0.0F : mixture.wide ? weight_of(said[kNumbers - 1], peak) : 1.0F;
  float y[4] = {scale * said[0], scale * said[1], scale * said[2], 0.0F};
  const float mine = sum_lanes(y);
  const double first = __shfl_sync(kAllLanes, mine, 0);
  const double weight = __shfl_sync(kAllLanes, mine, 8);
  const double weight_first = __shfl_sync(kAllLanes, mine, 16);
  FusionRecord& record = args_.records[row_];
  if (lane < kMaxExperts) {
    const bool is_expert = slice_.chosen(lane);
    record.alpha[lane] = is_expert ? shared_.alpha[lane] : 0.0F;
    record.target_f[lane] = is_expert ? static_cast<float>(curves_[lane].a) : 0.0F;
    record.target_g[lane] = is_expert ? static_cast<float>(curves_[lane].b) : 0.0F;
  }
  if (lane != 0) {
    return;
  }
  Divergences fused;
  if (mixture.wide) {
    double zero = 0.0;  // E_P[δ]
    for (int t = 0; t < experts(); ++t) {
      zero += slice_.chosen(t) ? shared_.alpha[t] * curves_[t].zero_mean : 0.0;
    }
    fused = divergences({1.0, static_cast<double>(peak) - shared_.peak + log(weight * shared_.per_weight) - zero,
                         weight_first / weight - zero, 0.0});
  } else {
    fused = at_one(shared_.per_weight, first, weight, weight_first);
  }
  record.f = static_cast<float>(fused.f);
  record.g = static_cast<float>(fused.g);
  record.sweeps = sweeps_ + 1;
  record.bad_model = kNoBadModel;
  record.closed = 0;
  record.selected = shared_.selected;
}

}  // namespace dlf::cuda
