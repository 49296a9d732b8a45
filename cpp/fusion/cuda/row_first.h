#pragma once

#include "fusion/cuda/row_solver.h"

// The first sweep: every curve at nine values of α, the targets, and the start of the searches.
namespace dlf::cuda {

// Evaluates every curve at the first values, and the targets. Returns whether a curve needs sweep_wide_first() too.
template <SolverKind kKind, bool kHeld>
__device__ bool RowSolver<kKind, kHeld>::sweep_first() {
#pragma unroll 1
  for (int t = 0; t < experts(); ++t) {
    if (!slice_.chosen(t)) {
      continue;
    }
    float* out = exchange(t);
    const float centre = out[kMeans] > 0.0F ? out[kMeans + 1] / out[kMeans] : 0.0F;
    const float base_centre = out[kMeans + 2] > 0.0F ? out[kMeans + 3] / out[kMeans + 2] : 0.0F;
    const float most = out[kMost];
    // Stays false for a block without tokens.
    const bool too_far = kFirstSteps * step(t) * (most - centre) > kReach || most - base_centre > kReach;
    if (threadIdx.x == 0) {
      out[kSummed] = too_far ? 0.0F : 1.0F;
    }
    if (too_far) {
      continue;
    }
    float x[kWarp] = {};
    sum_steps(slice_, t, {finite_peak(out[kPeak]), finite_peak(out[kBasePeak]), centre, base_centre}, step(t), x);
    sums_.reduce(x, [&](float total) { out[lane_index()] = add_steps(total); });
  }
  meet();
  const bool wide = owns_curve() && take_first();
  ++round_;
  return __syncthreads_or(wide ? 1 : 0) != 0;
}

// Each lane reads the numbers of one block, all at once because another block's memory is far. Returns whether the
// curve is wide.
template <SolverKind kKind, bool kHeld>
__device__ bool RowSolver<kKind, kHeld>::take_first() {
  const int t = warp_index();
  const bool speaks = lane_index() < cluster_.blocks;
  const float* said = cluster_.of(exchange(t), speaks ? lane_index() : 0);
  const Four means = *reinterpret_cast<const Four*>(said + kMeans);
  const Four extremes = *reinterpret_cast<const Four*>(said + kPeak);
  const Four state = *reinterpret_cast<const Four*>(said + kBad);
  const float block_peak = speaks ? extremes.at[0] : -kInfinity;
  const float block_base_peak = speaks ? extremes.at[kBasePeak - kPeak] : -kInfinity;
  const float peak = finite_peak(largest_lane(block_peak));
  const float base_peak = finite_peak(largest_lane(block_base_peak));
  const float most = largest_lane(speaks ? extremes.at[kMost - kPeak] : -kInfinity);
  const float least = -largest_lane(speaks ? -extremes.at[kLeast - kPeak] : -kInfinity);
  const int bad = static_cast<int>(-largest_lane(speaks ? state.at[0] : -static_cast<float>(Slice::kNone)));
  const bool summed = __all_sync(kAllLanes, !speaks || state.at[kSummed - kBad] != 0.0F) != 0;
  const float scale = speaks ? weight_of(block_peak, peak) : 0.0F;
  const float base_scale = speaks ? weight_of(block_base_peak, base_peak) : 0.0F;
  float x[4] = {scale * means.at[0], scale * means.at[1], base_scale * means.at[2], base_scale * means.at[3]};
  const float mine = sum_lanes(x);
  const float weight = __shfl_sync(kAllLanes, mine, 0);
  const float first = __shfl_sync(kAllLanes, mine, 8);
  const float base_weight = __shfl_sync(kAllLanes, mine, 16);
  const float base_first = __shfl_sync(kAllLanes, mine, 24);
  const float centre = first / weight;
  const float base_centre = base_first / base_weight;
  const bool target_wide = !(most - base_centre <= kReach);
  const bool wide = !summed || target_wide || !(kFirstSteps * step(t) * (most - centre) <= kReach);
  if (first_lane()) {
    Curve& curve = own();
    curve.centre = centre;
    curve.base_centre = base_centre;
    curve.most = most;
    curve.least = least;
    curve.base_peak = base_peak;
    curve.per_base = 1.0 / base_weight;
    curve.target_wide = target_wide;
    curve.wide = wide;
    if (t == __ffs(static_cast<int>(slice_.chosen())) - 1) {
      shared_.peak = peak;
      shared_.per_weight = 1.0 / weight;
      shared_.bad = bad != Slice::kNone ? bad : weight > 0.0F ? kNoBadModel : kEmptySupport;
    }
  }
  if (!wide) {
    __syncwarp();
    take_narrow({1.0 / weight, 1.0 / base_weight, scale, base_scale, means});
  }
  return wide;
}

// Moves a block's sums from its own centre to the common one, a distance d (`apart`) away: δ = δ_b + d and
// y = e^{αd}(1 + y_b) − 1.
struct Moved {
  double apart;
  double growth;  // e^{αd} − 1

  __device__ Moved(float block_centre, float centre, float alpha)
      : apart(static_cast<double>(block_centre) - centre), growth(expm1_fast(alpha * static_cast<float>(apart))) {}
  // `zero`, `one`, `two` are Σp, Σpδ, Σpδ² or Σpy, Σpyδ, Σpyδ².
  __device__ double first(double zero, double one) const { return one + apart * zero; }
  __device__ double second(double zero, double one, double two) const {
    return two + apart * (2.0 * one + apart * zero);
  }
  __device__ double grown(double sum, double rise) const { return rise + growth * (rise + sum); }
};

// Each lane handles one value of α in every fourth block. It issues all reads before it uses any.
template <SolverKind kKind, bool kHeld>
__device__ void RowSolver<kKind, kHeld>::take_narrow(const Scales& scales) {
  static_assert(kFirstSteps == 8);
  constexpr int kShares = kWarp / kFirstSteps;
  constexpr int kTurns = kSolverBlocks / kShares;
  const int t = warp_index();
  const int lane = lane_index();
  Curve& curve = own();
  const int number = lane % kFirstSteps;
  const float alpha = static_cast<float>(number + 1) * step(t);
  const bool speaks = lane < cluster_.blocks;
  float rises[kTurns][3];
  float zeros[kTurns][2];
#pragma unroll
  for (int turn = 0; turn < kTurns; ++turn) {
    const int block = lane / kFirstSteps + turn * kShares;
    const float* said = cluster_.of(exchange(t), block < cluster_.blocks ? block : cluster_.rank);
#pragma unroll
    for (int i = 0; i < 3; ++i) {
      rises[turn][i] = said[3 * number + i];
    }
    zeros[turn][0] = said[kZeroSums];
    zeros[turn][1] = said[kZeroSums + 1];
  }
  const float* own_said = cluster_.of(exchange(t), speaks ? lane : cluster_.rank);
  const float said_target[3] = {own_said[kTargetSums], own_said[kTargetSums + 1], own_said[kTargetSums + 2]};
  double sums[5] = {};  // Σpy, Σpyδ, Σpyδ²; Σpδ, Σpδ²
#pragma unroll
  for (int turn = 0; turn < kTurns; ++turn) {
    if (turn * kShares >= cluster_.blocks) {
      continue;
    }
    const int block = lane / kFirstSteps + turn * kShares;  // lane `block` has read its means
    const float share = __shfl_sync(kAllLanes, scales.scale, block);
    const float block_weight = __shfl_sync(kAllLanes, scales.means.at[0], block);
    const float block_first = __shfl_sync(kAllLanes, scales.means.at[1], block);
    if (block >= cluster_.blocks || !(block_weight > 0.0F)) {
      continue;
    }
    const double weight = block_weight;
    const Moved moved(block_first / block_weight, curve.centre, alpha);
    const double zero_first = zeros[turn][0];
    const double zero_second = zeros[turn][1];
    const double rise = rises[turn][0];
    const double rise_first = rises[turn][1];
    const double rise_second = rises[turn][2];
    const double first = moved.first(weight, zero_first);
    const double second = moved.second(weight, zero_first, zero_second);
    sums[0] += share * moved.grown(weight, rise);
    sums[1] += share * moved.grown(first, moved.first(rise, rise_first));
    sums[2] += share * moved.grown(second, moved.second(rise, rise_first, rise_second));
    sums[3] += share * first;
    sums[4] += share * second;
  }
#pragma unroll
  for (int distance = kFirstSteps; distance < kWarp; distance *= 2) {
#pragma unroll
    for (double& sum : sums) {
      sum += __shfl_xor_sync(kAllLanes, sum, distance);
    }
  }
  // Here each lane handles one block.
  double targets[3] = {};  // Σqδ, Σqy, Σqyδ
  if (speaks && scales.means.at[2] > 0.0F) {
    const double weight = scales.means.at[2];
    const Moved moved(scales.means.at[3] / scales.means.at[2], curve.base_centre, 1.0F);
    const double rise = said_target[1];
    const double first = moved.first(weight, said_target[0]);
    targets[0] = scales.base_scale * first;
    targets[1] = scales.base_scale * moved.grown(weight, rise);
    targets[2] = scales.base_scale * moved.grown(first, moved.first(rise, said_target[2]));
  }
#pragma unroll
  for (int distance = 1; distance < kSolverBlocks; distance *= 2) {
#pragma unroll
    for (double& sum : targets) {
      sum += __shfl_xor_sync(kAllLanes, sum, distance);
    }
  }
  // Lane k takes the point of number k − 1; lane 0 takes the target, under the base at α = 1.
  const bool is_target = lane == 0;
  const double per = is_target ? scales.per_base : scales.per_weight;
  PointSums zero = {0.0, sums[3] * per, sums[4] * per};
  for (double& sum : sums) {
    sum = __shfl_up_sync(kAllLanes, sum, 1);
  }
  PointSums at = {sums[0], sums[1], sums[2]};
  if (is_target) {
    zero.first = targets[0] * per;
    at = {targets[1], targets[2], 0.0};
  }
  const CurvePoint point = narrow_point(zero, per, is_target ? 1.0 : lane * static_cast<double>(step(t)), at);
  if (lane == 1) {
    curve.zero_mean = zero.first;
    curve.zero_square = zero.second;
  }
  if (is_target) {
    const Divergences target = divergences(point);
    curve.a = target.f;
    curve.b = target.g;
  }
  __syncwarp();
  put_first(point);
}

// Puts the first points into the search: lane k has number k.
template <SolverKind kKind, bool kHeld>
__device__ void RowSolver<kKind, kHeld>::put_first(CurvePoint point) {
  Curve& curve = own();
  if (lane_index() == 0) {
    point = {0.0, 0.0, 0.0, larger(curve.zero_square - curve.zero_mean * curve.zero_mean, 0.0)};
  }
  int count = kFirstSteps + 1;
  if (on_grid() && owns_search()) {
    const double bound = grid_bound(warp_index());
    count = 1;
    while (count <= kFirstSteps && in_grid(bound, count)) {
      ++count;
    }
  }
  curve.search.put(point, count);
}

template <SolverKind kKind, bool kHeld>
__device__ void RowSolver<kKind, kHeld>::start_searches() {
  if (!owns_curve()) {
    return;
  }
  // Σ_t (f − a_t)² is T(f − ā)² and a constant, so one expert among several is searched with the mean targets.
  double a = weighed(warp_index(), own().a);
  double b = weighed(warp_index(), own().b);
  if (by_mean() && solved() != 0) {
    a = 0.0;
    b = 0.0;
    for (int t = 0; t < experts(); ++t) {
      a += solved(t) ? weighed(t, curves_[t].a) : 0.0;
      b += solved(t) ? weighed(t, curves_[t].b) : 0.0;
    }
    const double share = 1.0 / __popc(solved());
    a *= share;
    b *= share;
  }
  own().search.start({a, b, rule().f_weight, rule().g_weight});
}

}  // namespace dlf::cuda
