#pragma once

#include "fusion/row_solver_cuda.h"

// A row's logits on their way in: what is wrong with them, and the peaks and means that the sweeps need.
namespace dlf::cuda {

// A row without experts.
template <bool kJoint>
__device__ void RowSolver<kJoint>::copy() {
  slice_.read();  // a thread copies what it has read itself
  for_groups(slice_, [&](int group) { slice_.write(group, slice_.large(group)); });
  if (cluster_.rank == 0 && threadIdx.x == 0) {
    FusionRecord record = {};
    record.passes = 1;
    record.bad_model = kNoBadModel;
    args_.records[row_] = record;
  }
}

// The logits come in, the peaks and means of every model go round the cluster.
template <bool kJoint>
__device__ void RowSolver<kJoint>::read() {
  const int bad = slice_.read();
  // The maxima of the warps wait in the buffer that the first exchange leaves free: three an expert, then two.
  float* maxima = exchange_ + SharedPlan::exchange_floats(args_.expert_count);
  const auto keep = [&](int kind, float most) {
    most = largest_lane(most);
    if (first_lane()) {
      maxima[kind * kSolverWarps + warp_index()] = most;
    }
  };
  const auto block_most = [&](int kind) {
    return largest_lane(maxima[kind * kSolverWarps + lane_index() % kSolverWarps]);
  };
  const int common = 3 * args_.expert_count;
  keep(common, -static_cast<float>(bad));
  const int first = __ffs(static_cast<int>(slice_.chosen())) - 1;
  for (int t = 0; t < args_.expert_count; ++t) {
    if (!slice_.chosen(t)) {
      continue;
    }
    float peak = -kInfinity;
    float base_peak = -kInfinity;
    float most = -kInfinity;
    float least = kInfinity;
    for_groups(slice_, [&](int group) {
      const Four large = slice_.large(group);
      const Four delta = slice_.delta(t, group, large);
      const Four base = slice_.base(t, group, large);
#pragma unroll
      for (int j = 0; j < 4; ++j) {
        const bool in = large.at[j] != -kInfinity;
        peak = fmaxf(peak, large.at[j]);
        base_peak = fmaxf(base_peak, base.at[j]);
        most = fmaxf(most, in ? delta.at[j] : -kInfinity);
        least = fminf(least, in ? delta.at[j] : kInfinity);
      }
    });
    if (t == first) {
      keep(common + 1, peak);
    }
    keep(3 * t, base_peak);
    keep(3 * t + 1, most);
    keep(3 * t + 2, -least);
  }
  __syncthreads();
  const float block_bad = block_most(common);
  const float peak = block_most(common + 1);
  for (int t = 0; t < args_.expert_count; ++t) {
    if (!slice_.chosen(t)) {
      continue;
    }
    const float base_peak = block_most(3 * t);
    float x[4] = {};
    sum_means(slice_, t, finite_peak(peak), finite_peak(base_peak), x);
    float* out = exchange(t);
    sums_.add(x, out);
    if (warp_index() == t % kSolverWarps) {
      const float most = block_most(3 * t + 1);
      const float least = -block_most(3 * t + 2);
      if (first_lane()) {
        out[kPeak] = peak;
        out[kBasePeak] = base_peak;
        out[kMost] = most;
        out[kLeast] = least;
        out[kBad] = block_bad;
      }
    }
  }
  meet();
  if (owns_curve()) {
    take_means();
  }
  ++round_;
  __syncthreads();
}

// A lane reads what one block has to say.
template <bool kJoint>
__device__ void RowSolver<kJoint>::take_means() {
  const int t = warp_index();
  const bool speaks = lane_index() < cluster_.blocks;
  const float* said = cluster_.of(exchange(t), speaks ? lane_index() : 0);
  const float block_peak = speaks ? said[kPeak] : -kInfinity;
  const float block_base_peak = speaks ? said[kBasePeak] : -kInfinity;
  const float peak = finite_peak(largest_lane(block_peak));
  const float base_peak = finite_peak(largest_lane(block_base_peak));
  const float most = largest_lane(speaks ? said[kMost] : -kInfinity);
  const float least = -largest_lane(speaks ? -said[kLeast] : -kInfinity);
  const int bad = static_cast<int>(-largest_lane(speaks ? said[kBad] : -static_cast<float>(Slice::kNone)));
  const float scale = weight_of(block_peak, peak);
  const float base_scale = weight_of(block_base_peak, base_peak);
  float x[4] = {scale * said[0], scale * said[1], base_scale * said[2], base_scale * said[3]};
  const float mine = sum_lanes(x);
  const float weight = __shfl_sync(kAllLanes, mine, 0);
  const float first = __shfl_sync(kAllLanes, mine, 8);
  const float base_weight = __shfl_sync(kAllLanes, mine, 16);
  const float base_first = __shfl_sync(kAllLanes, mine, 24);
  if (!first_lane()) {
    return;
  }
  Curve& curve = own();
  curve.centre = first / weight;
  curve.base_centre = base_first / base_weight;
  curve.most = most;
  curve.least = least;
  curve.base_peak = base_peak;
  curve.per_base = 1.0 / base_weight;
  curve.target_wide = !(most - curve.base_centre <= kReach);
  curve.wide = curve.target_wide || !(kFirstSteps * step(t) * (most - curve.centre) <= kReach);
  curve.search.value_count = kFirstSteps + 1;
  for (int k = 0; k <= kFirstSteps && curve.wide; ++k) {
    curve.search.values[k] = static_cast<float>(k) * step(t);
  }
  if (t == __ffs(static_cast<int>(slice_.chosen())) - 1) {
    shared_.peak = peak;
    shared_.per_weight = 1.0 / weight;
    shared_.bad = bad != Slice::kNone ? bad : weight > 0.0F ? kNoBadModel : kEmptySupport;
  }
}

template <bool kJoint>
__device__ void RowSolver<kJoint>::report_bad() {
  if (cluster_.rank == 0 && threadIdx.x == 0) {
    FusionRecord record = {};
    record.bad_model = shared_.bad;
    record.passes = passes_;
    args_.records[row_] = record;
  }
  cluster_.sync();  // others may be reading this block's means
}

}  // namespace dlf::cuda
