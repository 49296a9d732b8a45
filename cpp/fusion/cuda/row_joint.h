#pragma once

#include "fusion/cuda/row_solver.h"

// `joint`: solves the weights of all experts together, by Newton steps that cost one sweep each.
namespace dlf::cuda {

inline constexpr int kMostEvaluations = 64;

// Not inlined, as the functions of SearchWarp, which also gives it registers of its own.
__device__ __noinline__ void take_evaluation(JointState& state, double cumulant) {
  assume_shared(&state);
  state.searching = state.search.take(cumulant, state.means, state.products);
}

template <SolverKind kKind, bool kHeld>
__device__ void RowSolver<kKind, kHeld>::solve_joint() {
  if (__popc(solved()) < 2) {
    return;
  }
  const int experts = args_.expert_count;
  if (threadIdx.x == 0) {
    // Experts with given weights have a bound of 0 here, which keeps them out of the search.
    double alpha[kMaxExperts];
    double moments[kMaxExperts];
    double bounds[kMaxExperts];
    for (int t = 0; t < experts; ++t) {
      shared_.alpha[t] = solved(t) ? shared_.alpha[t] : 0.0F;
      alpha[t] = shared_.alpha[t];
      moments[t] = solved(t) ? curves_[t].search.answer().mean : 0.0;
      bounds[t] = solved(t) ? rule().alpha_max[t] : 0.0F;
    }
    joint_->search.start(experts, bounds, alpha, moments, JointPrecision::of_float());
  }
  __syncthreads();
  const int tiles = Tile::count(experts);
  for (int evaluation = 0; evaluation < kMostEvaluations; ++evaluation) {
    const Mixture mixture = {shared_.alpha, curves_, experts, Mixture::is_wide(shared_.alpha, curves_, experts)};
    float peak = shared_.peak;
    if (mixture.wide) {
      peak = mixture.peak(slice_, shared_.peaks);
      if (threadIdx.x == 0) {
        exchange(0)[tiles * kWarp] = peak;
      }
    }
    if (experts <= kFew) {
      float x[kWarp] = {};
      sum_few(slice_, mixture, peak, x);
      sums_.add(x, exchange(0));
    } else {
      Tile tile = {0, 0};
#pragma unroll 1
      for (int index = 0; index < tiles; ++index, tile.next()) {
        float x[kWarp] = {};
        sum_tile(slice_, mixture, tile, peak, x);
        sums_.add(x, exchange(0) + index * kWarp);
      }
    }
    ++sweeps_;
    meet();
    gather_joint(mixture.wide);
    ++round_;
    __syncthreads();
    if (warp_index() == 0) {
      take_joint(mixture.wide);
    }
    if (threadIdx.x == 0) {
      const double* next = joint_->searching ? joint_->search.trial() : joint_->search.answer();
      for (int t = 0; t < experts; ++t) {
        const bool is_given = !joint_->searching && slice_.chosen(t) && !solved(t);
        shared_.alpha[t] = is_given ? rule().alpha[t] : static_cast<float>(next[t]);
      }
    }
    __syncthreads();
    if (!joint_->searching) {
      return;
    }
  }
}

// Each warp adds up one tile. If wide, the totals are relative to the cluster's peak, which goes to `means[0]`.
template <SolverKind kKind, bool kHeld>
__device__ void RowSolver<kKind, kHeld>::gather_joint(bool wide) {
  const int tiles = Tile::count(experts());
  if (warp_index() >= tiles) {
    return;
  }
  float* sums = exchange(0);
  const int index = warp_index() * kWarp + lane_index();
  if (!wide) {
    joint_->totals[index] = sum_cluster(cluster_, sums, index);
    return;
  }
  float* peaks = sums + tiles * kWarp;
  float peak = -kInfinity;
  for (int block = 0; block < cluster_.blocks; ++block) {
    peak = fmaxf(peak, *cluster_.of(peaks, block));
  }
  double sum = 0.0;
  for (int block = 0; block < cluster_.blocks; ++block) {
    sum += cluster_.of(sums, block)[index] * weight_of(*cluster_.of(peaks, block), peak);
  }
  joint_->totals[index] = static_cast<float>(sum);
  if (threadIdx.x == 0) {
    joint_->means[0] = peak;
  }
}

// Moves the totals to Δ centred under P, and hands them to the search. Each lane handles some of them.
template <SolverKind kKind, bool kHeld>
__device__ void RowSolver<kKind, kHeld>::take_joint(bool wide) {
  JointState& state = *joint_;
  const int experts = args_.expert_count;
  const double weight = state.totals[0];
  const double rise = weight * shared_.per_weight;
  const double per = wide ? 1.0 / weight : shared_.per_weight / (1.0 + rise);
  const double peak = wide ? state.means[0] : 0.0;
  const auto shift_of = [&](int t) { return slice_.chosen(t) ? curves_[t].zero_mean : 0.0; };
  __syncwarp();
  for (int t = lane_index(); t < experts; t += kWarp) {
    state.means[t] = state.totals[Tile::place(experts, 1 + t, 0)] * per - shift_of(t);
  }
  __syncwarp();
  int t = 0;
  for (int pair = lane_index(); pair < experts * (experts + 1) / 2; pair += kWarp) {
    while ((t + 1) * (t + 2) / 2 <= pair) {
      ++t;
    }
    const int s = pair - t * (t + 1) / 2;
    const double shift = shift_of(t);
    const double other = shift_of(s);
    // E[(Δ_t − x)(Δ_s − y)] = E[Δ_tΔ_s] − x·E[Δ_s − y] − y·E[Δ_t − x] − xy
    state.products[pair] = state.totals[Tile::place(experts, 1 + t, 1 + s)] * per - shift * state.means[s] -
                           other * state.means[t] - shift * other;
  }
  __syncwarp();
  if (first_lane()) {
    double cumulant = wide ? peak - shared_.peak + log(rise) : log1p(rise);
    for (int expert = 0; expert < experts; ++expert) {
      cumulant -= static_cast<double>(shared_.alpha[expert]) * shift_of(expert);
    }
    take_evaluation(state, cumulant);
  }
}

}  // namespace dlf::cuda
