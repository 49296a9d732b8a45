#pragma once

#include "fusion/cuda/combine.h"

// The blocks of one cluster solve a row. Each handles a part of the vocabulary, which stays in its shared memory as far
// as it fits. After every sweep each block adds up the sums of all blocks in one order, and repeats the search that all
// others do too, so that a sweep costs the cluster one barrier. In the first sweep each block has peaks and centres of
// its own; its sums are moved to common ones when they are added up.
namespace dlf::cuda {

inline constexpr double kTie = 1e-9;  // losses that differ by at most this share of the loss at α = 0 are equal
inline constexpr float kGridStep = 0.1F;
inline constexpr int kGridSteps = 20;
inline constexpr int kExchangeFloats = 64;  // per expert
inline constexpr int kPeaksAt = 40;         // index of the peaks among them

// Layout of an expert's part of the first exchange after its 32 sums: Σp, ΣpΔ, Σq, ΣqΔ of the block, its extremes, the
// bad model, and whether the block made the sums.
enum : int { kMeans = 32, kPeak = 36, kBasePeak, kMost, kLeast, kBad = 52, kSummed };
static_assert(kPeaksAt + kTargetPeak < kBad && kSummed < kExchangeFloats);
static_assert(kMeans % 4 == 0 && kPeak % 4 == 0 && kBad % 4 == 0);  // read by fours

// The joint search of a row and its input.
struct JointState {
  JointSearch search;
  float totals[kMostTiles * kWarp];
  double means[kMaxExperts];
  double products[kMaxExperts * (kMaxExperts + 1) / 2];
  bool searching;
};

// Shared memory of a block, before the logits.
struct Shared {
  float peak;         // the row's largest logit
  double per_weight;  // 1 / Σp
  int bad;            // kNoBadModel, kEmptySupport or a model
  float alpha[kMaxExperts];
  int selected;  // −1 where no expert is
  RowRule rule;
  float parts[BlockSums::kFloats];
  float peaks[kSolverWarps];
};

// Offsets in shared memory, in bytes.
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

// Factors by which a block's sums and means enter those of the cluster.
struct Scales {
  double per_weight;  // 1 / Σp and 1 / Σq of the row
  double per_base;
  float scale;  // of this lane's block: its weights under the row's peak
  float base_scale;
  Four means;
};

// f and g at α = 1 from the sums of `fuse` or `sum_target`.
__device__ inline Divergences at_one(double per_weight, double first, double y, double y_first) {
  const double zero = first * per_weight;
  const double rise = y * per_weight;
  const double mean = (y_first * per_weight - rise * zero) / (1.0 + rise);
  return divergences({1.0, log1p(rise) - zero, mean, 0.0});
}

// What a kernel solves. This and `kHeld`, that all logits of a row fit on the chip, are known at compile time, so that
// the loops over tokens branch less.
enum class SolverKind { one, some, joint };

template <SolverKind kKind, bool kHeld>
class RowSolver {
 public:
  __device__ RowSolver(const FusionArgs& args, const RowRule& rule, const SolverLayout& layout, unsigned char* memory)
      : args_(args),
        row_(static_cast<int>(blockIdx.x) / cluster_.blocks),
        slice_(args, rule, layout, row_, cluster_.rank, reinterpret_cast<float*>(memory + layout.logits_at), kHeld),
        shared_(*reinterpret_cast<Shared*>(memory)),
        sums_{shared_.parts} {
    const SharedPlan plan(experts(), kKind == SolverKind::joint);
    curves_ = reinterpret_cast<Curve*>(memory + plan.curves);
    joint_ = reinterpret_cast<JointState*>(memory + plan.joint);
    exchange_ = reinterpret_cast<float*>(memory + plan.exchange);
    // The rule loads while the logits do; read() ends with a barrier, and nothing uses the rule before.
    static_assert(sizeof(RowRule) % sizeof(uint32_t) == 0 && sizeof(RowRule) / sizeof(uint32_t) <= kSolverThreads);
    if (threadIdx.x < sizeof(RowRule) / sizeof(uint32_t)) {
      reinterpret_cast<uint32_t*>(&shared_.rule)[threadIdx.x] = reinterpret_cast<const uint32_t*>(&rule)[threadIdx.x];
    }
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
  __device__ const RowRule& rule() const { return shared_.rule; }
  __device__ bool first_lane() const { return lane_index() == 0; }
  // Bit t: the weight of expert t is solved.
  __device__ uint32_t solved() const { return slice_.chosen() & ~rule().given; }
  __device__ bool solved(int t) const { return (solved() >> t & 1U) != 0; }
  // The weight of an expert that is not solved.
  __device__ float given(int t) const {
    return (rule().measured >> t & 1U) != 0 ? args_.records[row_].alpha[t] : rule().alpha[t];
  }
  // A target of an expert as its search meets it.
  __device__ double weighed(int t, double target) const {
    return (rule().weighed >> t & 1U) != 0 ? target * args_.records[row_].alpha[t] : target;
  }
  // Whether this warp adds up the curve of expert warp_index(), and whether it also searches it.
  __device__ bool owns_curve() const { return slice_.chosen(warp_index()); }
  __device__ bool owns_search() const { return solved(warp_index()); }
  __device__ Curve& own() const { return curves_[warp_index()]; }
  __device__ bool by_mean() const { return rule().meets_mean != 0; }
  __device__ bool on_grid() const { return rule().on_grid != 0; }
  // Bound of the grid's values: α_max, with a margin for the rounding of a float.
  __device__ double grid_bound(int t) const { return rule().alpha_max[t] * (1.0 + 1e-6); }
  __device__ static bool in_grid(double bound, int value) { return value * 0.1 <= bound; }
  __device__ float step(int t) const {
    if (!solved(t)) {
      return 0.0F;  // the sweep gives the targets alone
    }
    return on_grid() ? kGridStep : rule().alpha_max[t] / kFirstSteps;
  }
  __device__ float* exchange(int t) const {
    return exchange_ + round_ % 2 * SharedPlan::exchange_floats(experts()) + t * kExchangeFloats;
  }
  // Waits for all blocks. The next exchange has the other buffer, so no block overwrites what another still reads.
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

  // Sums this lane's number of the expert's exchange over the cluster. With a `peak_index` (−1 for none), each block's
  // number is relative to the block's peak, and the sum to the largest of these, which is returned in `peak`.
  __device__ float total(int t, int peak_index, float& peak) const;
  __device__ PointSums sums_of(float total, int index) const {
    const int at = index < 0 ? 0 : 3 * index;
    return {__shfl_sync(kAllLanes, total, at), __shfl_sync(kAllLanes, total, at + 1),
            __shfl_sync(kAllLanes, total, at + 2)};
  }
  // Point of a curve from the sums of y = e^{αδ} − 1 under weights whose sum is 1 / per and whose moments are `zero`.
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
  int sweeps_ = 1;
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

}  // namespace dlf::cuda
