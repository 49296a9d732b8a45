#pragma once

#include "fusion/cuda/combine.h"

// A row is solved by the blocks of one cluster. Each looks after a part of the vocabulary, which stays in its shared
// memory as far as it fits; after every sweep each block adds up the sums of all, in one order, and then searches for
// itself what all others search too, so that a sweep costs the cluster one barrier. In the first sweep each block has
// peaks and centres of its own, which are moved to common ones when the sums are added up.
namespace dlf::cuda {

inline constexpr double kTie = 1e-9;  // losses so near, as shares of the loss at α = 0, are equal
inline constexpr float kGridStep = 0.1F;
inline constexpr int kGridSteps = 20;
inline constexpr int kExchangeFloats = 64;  // an expert
inline constexpr int kPeaksAt = 40;         // of these

// What an expert's part of the first exchange holds behind its 32 sums: Σp, ΣpΔ, Σq, ΣqΔ of the block, its extremes,
// what is wrong, and whether the sums are there.
enum : int { kMeans = 32, kPeak = 36, kBasePeak, kMost, kLeast, kBad = 52, kSummed };
static_assert(kPeaksAt + kTargetPeak < kBad && kSummed < kExchangeFloats);
static_assert(kMeans % 4 == 0 && kPeak % 4 == 0 && kBad % 4 == 0);  // read by fours

// The joint search of a row and what it is given.
struct JointState {
  JointSearch search;
  float totals[kMostTiles * kWarp];
  double means[kMaxExperts];
  double products[kMaxExperts * (kMaxExperts + 1) / 2];
  bool searching;
};

// What the threads of a block share, before the logits.
struct Shared {
  float peak;         // the row's largest logit
  double per_weight;  // 1 / Σp
  int bad;            // kNoBadModel, kEmptySupport or a model
  float alpha[kMaxExperts];
  float parts[BlockSums::kFloats];
  float peaks[kSolverWarps];
};

// Bytes from the beginning of shared memory.
struct SharedPlan {
  int curves;
  int joint;
  int exchange;
  int logits;

  __host__ __device__ SharedPlan(int experts, bool with_joint)
      : curves(padded(sizeof(Shared))),
        joint(curves + experts * padded(sizeof(Curve))),
        exchange(joint + (with_joint ? padded(sizeof(JointState)) : 0)),
        logits(exchange + 2 * exchange_floats(experts) * static_cast<int>(sizeof(float))) {}
  __host__ __device__ static int padded(size_t bytes) { return static_cast<int>((bytes + 15) / 16 * 16); }
  __host__ __device__ static int exchange_floats(int experts) {
    return experts > 1 ? experts * kExchangeFloats : 2 * kExchangeFloats;  // at least 8 for each block of a cluster
  }
};
static_assert(sizeof(Curve) % 16 == 0);
static_assert(8 * kSolverBlocks <= 2 * kExchangeFloats);

struct PointSums {  // total weight or Σpy, first and second moments
  double weight;
  double first;
  double second;
};

// What a block's sums and means count for in those of the cluster.
struct Scales {
  double per_weight;  // 1 / Σp and 1 / Σq of the row
  double per_base;
  float scale;  // of this lane's block: its weights under the row's peak
  float base_scale;
  Four means;
};

// f and g at α = 1 of what `fuse` and `sum_target` sum.
__device__ inline Divergences at_one(double per_weight, double first, double y, double y_first) {
  const double zero = first * per_weight;
  const double rise = y * per_weight;
  const double mean = (y_first * per_weight - rise * zero) / (1.0 + rise);
  return divergences({1.0, log1p(rise) - zero, mean, 0.0});
}

// What a kernel is for; and, `kHeld`, that a row's logits all fit on the chip. The less is left to ask in the loops
// over the tokens, the better.
enum class SolverKind { one, some, joint };

template <SolverKind kKind, bool kHeld>
class RowSolver {
 public:
  __device__ RowSolver(const FusionArgs& args, const SolverLayout& layout, unsigned char* memory)
      : args_(args),
        row_(static_cast<int>(blockIdx.x) / cluster_.blocks),
        slice_(args, layout, row_, cluster_.rank, reinterpret_cast<float*>(memory + layout.logits_at), kHeld),
        shared_(*reinterpret_cast<Shared*>(memory)),
        sums_{shared_.parts} {
    const SharedPlan plan(experts(), kKind == SolverKind::joint);
    curves_ = reinterpret_cast<Curve*>(memory + plan.curves);
    joint_ = reinterpret_cast<JointState*>(memory + plan.joint);
    exchange_ = reinterpret_cast<float*>(memory + plan.exchange);
  }

  __device__ __forceinline__ void solve() {
    if (slice_.chosen() == 0) {
      copy();
      return;
    }
    read();
    const bool wide = sweep_first();
    if (shared_.bad != kNoBadModel) {
      report_bad();
      return;
    }
    if (wide) {
      sweep_wide_first();
    }
    start_searches();
    if (solved() != 0) {
      search();
    }
    combine();
    if constexpr (kKind == SolverKind::joint) {
      solve_joint();
    }
    finish();
  }

 private:
  __device__ int experts() const { return kKind == SolverKind::one ? 1 : args_.expert_count; }
  __device__ bool first_lane() const { return lane_index() == 0; }
  // Bit t: expert t of this row has a weight that is to be solved.
  __device__ uint32_t solved() const { return slice_.chosen() & ~args_.given; }
  __device__ bool solved(int t) const { return (solved() >> t & 1U) != 0; }
  // Whose warp of the block adds up an expert's curve, and whose searches it too.
  __device__ bool owns_curve() const { return slice_.chosen(warp_index()); }
  __device__ bool owns_search() const { return solved(warp_index()); }
  __device__ Curve& own() const { return curves_[warp_index()]; }
  __device__ bool by_mean() const { return args_.combine == Combine::select || args_.combine == Combine::grid; }
  __device__ bool in_grid(int t, int value) const { return value * 0.1 <= args_.alpha_max[t] * (1.0 + 1e-6); }
  __device__ float step(int t) const {
    if (!solved(t)) {
      return 0.0F;  // the targets alone
    }
    return args_.combine == Combine::grid ? kGridStep : args_.alpha_max[t] / kFirstSteps;
  }
  __device__ float* exchange(int t) const {
    return exchange_ + round_ % 2 * SharedPlan::exchange_floats(experts()) + t * kExchangeFloats;
  }
  // The next exchange has the other buffer, so no block overwrites what another still reads.
  __device__ void meet() { cluster_.sync(); }

  __device__ void copy();
  __device__ void read();
  __device__ void report_bad();
  __device__ bool sweep_first();
  __device__ bool take_first();
  __device__ void take_narrow(const Scales& scales);
  __device__ void sweep_wide_first();
  __device__ void take_wide();
  __device__ void put_first(CurvePoint point);
  __device__ void start_searches();
  __device__ void sweep_wide(int t, int count);
  __device__ bool plan();
  __device__ void plan_grid();
  __device__ void search();
  __device__ void examine();
  __device__ void sweep_values();
  __device__ void take_values();
  __device__ void combine();
  __device__ void solve_joint();
  __device__ void gather_joint(bool wide);
  __device__ void take_joint(bool wide);
  __device__ void finish();

  // This lane's number of the expert's exchange, summed over the cluster; those with a peak (of index `peak_index`, −1
  // for none) above their common peak, which is returned in it.
  __device__ float total(int t, int peak_index, float& peak) const;
  __device__ PointSums sums_of(float total, int index) const {
    const int at = index < 0 ? 0 : 3 * index;
    return {__shfl_sync(kAllLanes, total, at), __shfl_sync(kAllLanes, total, at + 1),
            __shfl_sync(kAllLanes, total, at + 2)};
  }
  // Under weights whose sum is 1 / per, and whose own sums are those of `zero`, as shares.
  __device__ CurvePoint narrow_point(const PointSums& zero, double per, double alpha, const PointSums& sums) const {
    const double rise = sums.weight * per;
    const double per_total = 1.0 / (1.0 + rise);
    const double mean = (sums.first * per - rise * zero.first) * per_total;
    const double whole = mean + zero.first;
    return {alpha, log1p(rise) - alpha * zero.first, mean,
            larger((zero.second + sums.second * per) * per_total - whole * whole, 0.0)};
  }
  __device__ CurvePoint wide_point(const Curve& curve, double alpha, float peak, const PointSums& sums) const {
    const double per = 1.0 / sums.weight;
    const double whole = sums.first * per;
    return {alpha,
            static_cast<double>(peak) - shared_.peak + log(sums.weight * shared_.per_weight) - alpha * curve.zero_mean,
            whole - curve.zero_mean, larger(sums.second * per - whole * whole, 0.0)};
  }

  const FusionArgs& args_;
  const Cluster cluster_;
  int row_;
  Slice slice_;
  Shared& shared_;
  BlockSums sums_;
  Curve* curves_;
  JointState* joint_;
  float* exchange_;
  int round_ = 0;
  int passes_ = 1;
};

template <SolverKind kKind, bool kHeld>
__device__ float RowSolver<kKind, kHeld>::total(int t, int peak_index, float& peak) const {
  float* sums = exchange(t);
  if (__all_sync(kAllLanes, peak_index < 0)) {
    return sum_cluster(cluster_, sums, lane_index());
  }
  const auto peak_of = [&](int block) {
    return peak_index < 0 ? 0.0F : cluster_.of(sums, block)[kPeaksAt + peak_index];
  };
  peak = -kInfinity;
  for (int block = 0; block < cluster_.blocks; ++block) {
    peak = fmaxf(peak, peak_of(block));
  }
  peak = finite_peak(peak);
  double sum = 0.0;
  for (int block = 0; block < cluster_.blocks; ++block) {
    sum += cluster_.of(sums, block)[lane_index()] * weight_of(peak_of(block), peak);
  }
  return static_cast<float>(sum);
}

// Evaluates the first values on every curve, and the targets. Whether some curve needs sweep_wide_first() too.
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
    // A block without tokens is no obstacle.
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

// A lane reads what one block has to say, all at once: another block's memory is far. Whether the curve is wide.
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

// Moves a block's sums to the common centre, which its own lies `apart` from: δ = δ_b + d and
// y = e^{αd}(1 + y_b) − 1.
struct Moved {
  double apart;
  double growth;  // e^{αd} − 1

  __device__ Moved(float block_centre, float centre, float alpha)
      : apart(static_cast<double>(block_centre) - centre), growth(expm1_fast(alpha * static_cast<float>(apart))) {}
  // Of Σp, Σpδ, Σpδ² and Σpy, Σpyδ, Σpyδ², or of as many as there are.
  __device__ double first(double zero, double one) const { return one + apart * zero; }
  __device__ double second(double zero, double one, double two) const {
    return two + apart * (2.0 * one + apart * zero);
  }
  __device__ double grown(double sum, double rise) const { return rise + growth * (rise + sum); }
};

// A lane looks after one value and every fourth block. It reads all before it needs any.
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
    const int block = lane / kFirstSteps + turn * kShares;  // what its lane has read of its means
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
  // A lane looks after one block.
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
  // The point of lane k is that of number k − 1; the first lane's is the target, under the base at α = 1.
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

// Lane k has the point of number k.
template <SolverKind kKind, bool kHeld>
__device__ void RowSolver<kKind, kHeld>::put_first(CurvePoint point) {
  Curve& curve = own();
  if (lane_index() == 0) {
    point = {0.0, 0.0, 0.0, larger(curve.zero_square - curve.zero_mean * curve.zero_mean, 0.0)};
  }
  int count = kFirstSteps + 1;
  if (args_.combine == Combine::grid && owns_search()) {
    count = 1;
    while (count <= kFirstSteps && in_grid(warp_index(), count)) {
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
  double a = own().a;
  double b = own().b;
  if (by_mean() && solved() != 0) {
    a = 0.0;
    b = 0.0;
    for (int t = 0; t < experts(); ++t) {
      a += solved(t) ? curves_[t].a : 0.0;
      b += solved(t) ? curves_[t].b : 0.0;
    }
    const double share = 1.0 / __popc(solved());
    a *= share;
    b *= share;
  }
  own().search.start({a, b, args_.match == Match::reverse ? 0.0 : 1.0, args_.match == Match::forward ? 0.0 : 1.0});
}

// Evaluates the first values and the targets of those curves for which one sum over all values does not do.
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

// Evaluates the curve's first values one by one.
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
    // Q's own mean is base_centre, but for its rounding.
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

template <SolverKind kKind, bool kHeld>
__device__ void RowSolver<kKind, kHeld>::combine() {
  __syncthreads();
  if (threadIdx.x == 0) {
    // Experts that all reach the targets tie but for the last digits: the first of them is taken.
    int best = __ffs(static_cast<int>(solved())) - 1;
    for (int t = best + 1; t < experts() && best >= 0 && by_mean(); ++t) {
      const double tie = kTie * curves_[best].search.scale();
      const bool better = solved(t) && curves_[t].search.answer_loss() < curves_[best].search.answer_loss() - tie;
      best = better ? t : best;
    }
    for (int t = 0; t < experts(); ++t) {
      double alpha = slice_.chosen(t) ? args_.alpha[t] : 0.0F;
      if (solved(t)) {
        const double alone = curves_[t].search.answer().alpha;
        alpha = !by_mean() ? alone / __popc(solved()) : t == best ? alone : 0.0;  // the first is where `joint` starts
      }
      shared_.alpha[t] = static_cast<float>(alpha);
    }
  }
  __syncthreads();
}

// Fuses, and the first block reports: the others send it their sums and are done.
template <SolverKind kKind, bool kHeld>
__device__ void RowSolver<kKind, kHeld>::finish() {
  constexpr int kNumbers = 8;  // a block: three sums, and at the end its peak
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
  record.passes = passes_ + 1;
  record.bad_model = kNoBadModel;
}

}  // namespace dlf::cuda
