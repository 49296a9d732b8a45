#include <algorithm>
#include <map>
#include <mutex>
#include <utility>

#include "fusion/combine_cuda.h"
#include "fusion/solver_cuda.h"

// A row is solved by the blocks of one cluster. Each looks after a part of the vocabulary, which stays in its shared
// memory as far as it fits; after every sweep each block adds up the sums of all, in one order, and then searches for
// itself what all others search too, so that a sweep costs the cluster one barrier.
namespace dlf::cuda {
namespace {

constexpr double kTie = 1e-9;  // losses so near, as shares of the loss at α = 0, are equal
constexpr float kGridStep = 0.1F;
constexpr int kGridSteps = 20;
constexpr int kExchangeFloats = 64;  // an expert
constexpr int kPeaksAt = 40;         // of these
static_assert(kPeaksAt + kPeaks <= kExchangeFloats);
constexpr int kMostEvaluations = 64;

// What an expert's part of the first exchange holds behind its four sums.
enum : int { kPeak = 8, kBasePeak, kMost, kLeast, kBad };

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
  float peak_parts[kPeaks * kSolverWarps];
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

struct Sums {  // of one point: total weight or Σpy, first and second moments
  double weight;
  double first;
  double second;
};

// f and g at α = 1 of what `fuse` and `sum_target` sum.
__device__ Divergences at_one(double per_weight, double first, double y, double y_first) {
  const double zero = first * per_weight;
  const double rise = y * per_weight;
  const double mean = (y_first * per_weight - rise * zero) / (1.0 + rise);
  return divergences({1.0, log1pf(static_cast<float>(rise)) - zero, mean, 0.0});
}

template <bool kJoint>
class RowSolver {
 public:
  __device__ RowSolver(const FusionArgs& args, const SolverLayout& layout, unsigned char* memory)
      : args_(args),
        row_(static_cast<int>(blockIdx.x) / cluster_.blocks),
        slice_(args, layout, row_, cluster_.rank, reinterpret_cast<float*>(memory + layout.logits_at)),
        shared_(*reinterpret_cast<Shared*>(memory)),
        sums_{shared_.parts} {
    const SharedPlan plan(args.expert_count, kJoint);
    curves_ = reinterpret_cast<Curve*>(memory + plan.curves);
    joint_ = reinterpret_cast<JointState*>(memory + plan.joint);
    exchange_ = reinterpret_cast<float*>(memory + plan.exchange);
  }

  __device__ __forceinline__ void solve() {
    read();
    if (shared_.bad != kNoBadModel) {
      report_bad();
      return;
    }
    sweep_first();
    if (args_.combine == Combine::grid) {
      try_grid();
    } else if (args_.combine != Combine::static_alpha) {
      search();
    }
    combine();
    if constexpr (kJoint) {
      solve_joint();
    }
    finish();
  }

 private:
  __device__ bool first_lane() const { return lane_index() == 0; }
  // Whose warp of the block adds up and searches an expert's curve.
  __device__ bool owns_curve() const { return warp_index() < args_.expert_count; }
  __device__ Curve& own() const { return curves_[warp_index()]; }
  __device__ bool by_mean() const { return args_.combine == Combine::select || args_.combine == Combine::grid; }
  __device__ float step() const {
    switch (args_.combine) {
      case Combine::static_alpha:
        return 0.0F;  // the targets alone
      case Combine::grid:
        return kGridStep;
      default:
        return args_.alpha_max / kFirstSteps;
    }
  }
  __device__ float* exchange(int t) const {
    return exchange_ + round_ % 2 * SharedPlan::exchange_floats(args_.expert_count) + t * kExchangeFloats;
  }
  // The next exchange has the other buffer, so no block overwrites what another still reads.
  __device__ void meet() { cluster_.sync(); }

  __device__ void read();
  __device__ void take_means();
  __device__ void report_bad();
  __device__ void sweep_first();
  __device__ void take_first();
  __device__ void try_grid();
  __device__ void search();
  __device__ void examine();
  __device__ void sweep_values();
  __device__ CurvePoint take_values();
  __device__ void combine();
  __device__ void solve_joint();
  __device__ void gather_joint(bool wide);
  __device__ bool take_joint(bool wide);
  __device__ void finish();

  // This lane's number of the expert's exchange, summed over the cluster; those with a peak (of index `peak_index`, −1
  // for none) above their common peak, which is returned in it.
  __device__ float total(int t, int peak_index, float& peak) const;
  __device__ Sums sums_of(float total, int index) const {
    const int at = index < 0 ? 0 : 3 * index;
    return {__shfl_sync(kAllLanes, total, at), __shfl_sync(kAllLanes, total, at + 1),
            __shfl_sync(kAllLanes, total, at + 2)};
  }
  __device__ CurvePoint narrow_point(const Curve& curve, double alpha, const Sums& sums) const {
    const double per = shared_.per_weight;
    const double rise = sums.weight * per;
    const double per_total = 1.0 / (1.0 + rise);
    const double mean = (sums.first * per - rise * curve.zero_mean) * per_total;
    const double whole = mean + curve.zero_mean;
    return {alpha, log1pf(static_cast<float>(rise)) - alpha * curve.zero_mean, mean,
            larger((curve.zero_square + sums.second * per) * per_total - whole * whole, 0.0)};
  }
  __device__ CurvePoint wide_point(const Curve& curve, double alpha, float peak, const Sums& sums) const {
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
  for (int t = 0; t < args_.expert_count; ++t) {
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
    if (t == 0) {
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
  curve.wide = !(kFirstSteps * step() * (most - curve.centre) <= kReach);
  curve.target_wide = !(most - curve.base_centre <= kReach);
  if (t == 0) {
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

template <bool kJoint>
__device__ float RowSolver<kJoint>::total(int t, int peak_index, float& peak) const {
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

// Evaluates the first values on every curve, and the targets.
template <bool kJoint>
__device__ void RowSolver<kJoint>::sweep_first() {
  for (int t = 0; t < args_.expert_count; ++t) {
    const Curve& curve = curves_[t];
    float x[kWarp] = {};
    float* out = exchange(t);
    if (curve.wide) {
      const float apart = step();
      const auto alpha = [&](int k) { return static_cast<double>(k) * apart; };
      sum_wide(slice_, t, curve, kFirstSteps + 1, alpha, shared_.peak_parts, out + kPeaksAt, x);
    } else {
      sum_steps(slice_, t, curve, shared_.peak, step(), x);
    }
    if (curve.target_wide) {
      float* parts = shared_.peak_parts + kTargetPeak * kSolverWarps;
      sum_wide_target(slice_, t, curve, parts, out + kPeaksAt, x);
    } else {
      sum_target(slice_, t, curve, x);
    }
    sums_.add(x, out);
  }
  meet();
  if (owns_curve()) {
    take_first();
  }
  ++round_;
  __syncthreads();
  if (!owns_curve()) {
    return;
  }
  // Σ_t (f − a_t)² is T(f − ā)² and a constant, so one expert among several is searched with the mean targets.
  double a = own().a;
  double b = own().b;
  if (by_mean()) {
    a = 0.0;
    b = 0.0;
    for (int t = 0; t < args_.expert_count; ++t) {
      a += curves_[t].a;
      b += curves_[t].b;
    }
    a *= 1.0 / args_.expert_count;
    b *= 1.0 / args_.expert_count;
  }
  own().search.start({a, b, args_.match == Match::reverse ? 0.0 : 1.0, args_.match == Match::forward ? 0.0 : 1.0});
}

template <bool kJoint>
__device__ void RowSolver<kJoint>::take_first() {
  Curve& curve = own();
  const int lane = lane_index();
  int peak_index = -1;
  if (curve.wide && lane < 3 * (kFirstSteps + 1)) {
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
  const Sums zero = sums_of(mine, curve.wide ? 0 : kZeroSums / 3);
  const double per = curve.wide ? 1.0 / zero.weight : shared_.per_weight;
  const int point = lane <= kFirstSteps ? lane : 0;
  const Sums at = sums_of(mine, curve.wide ? point : point - 1);
  const float point_peak = __shfl_sync(kAllLanes, peak, 3 * point);
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
    // Narrow: what a point's place holds in the last is Σpδ, Σpδ².
    curve.zero_mean = (curve.wide ? zero.first : zero.weight) * per;
    curve.zero_square = (curve.wide ? zero.second : zero.first) * per;
    curve.a = target.f;
    curve.b = target.g;
  }
  __syncwarp();
  const double alpha = static_cast<double>(point) * step();
  CurvePoint here;
  if (point == 0) {
    here = {0.0, 0.0, 0.0, larger(curve.zero_square - curve.zero_mean * curve.zero_mean, 0.0)};
  } else {
    here = curve.wide ? wide_point(curve, alpha, point_peak, at) : narrow_point(curve, alpha, at);
  }
  int count = kFirstSteps + 1;
  if (args_.combine == Combine::grid) {
    count = 1;
    while (count <= kFirstSteps && count * 0.1 <= args_.alpha_max * (1.0 + 1e-6)) {
      ++count;
    }
  }
  curve.search.put(here, count);
}

// The rest of the paper's values.
template <bool kJoint>
__device__ void RowSolver<kJoint>::try_grid() {
  for (int begin = kFirstSteps + 1; begin <= kGridSteps; begin += kSweepValues) {
    int count = 0;
    while (count < kSweepValues && begin + count <= kGridSteps &&
           (begin + count) * 0.1 <= args_.alpha_max * (1.0 + 1e-6)) {
      ++count;
    }
    if (count == 0) {
      break;
    }
    if (owns_curve() && first_lane()) {
      for (int k = 0; k < count; ++k) {
        own().search.values[k] = static_cast<float>(begin + k) * kGridStep;
      }
      own().search.value_count = count;
    }
    __syncthreads();
    sweep_values();
    if (owns_curve()) {
      own().search.append(take_values());
    }
    ++round_;
    __syncthreads();
  }
  if (owns_curve()) {
    own().search.survey();
  }
}

template <bool kJoint>
__device__ void RowSolver<kJoint>::search() {
  for (;;) {
    if (owns_curve()) {
      own().search.survey();
    }
    __syncthreads();
    examine();
    __syncthreads();
    if (owns_curve()) {
      own().search.conclude();
    }
    __syncthreads();
    if (owns_curve()) {
      // Where one expert is selected, those that can't be the best needn't be known well. Those that tie must be.
      double rival = HUGE_VAL;
      if (by_mean()) {
        for (int t = 0; t < args_.expert_count; ++t) {
          rival = smaller(rival, curves_[t].search.answer_loss());
        }
        rival += 2.0 * kTie * own().search.scale();
      }
      own().search.plan(rival);
    }
    __syncthreads();
    bool any = false;
    for (int t = 0; t < args_.expert_count; ++t) {
      any = any || curves_[t].search.value_count > 0;
    }
    if (!any) {
      return;
    }
    sweep_values();
    if (owns_curve()) {
      const CurvePoint point = take_values();
      if (own().search.value_count > 0) {
        own().search.take(point);
      }
    }
    ++round_;
  }
}

// The warps share out the cells of all curves.
template <bool kJoint>
__device__ void RowSolver<kJoint>::examine() {
  int job = 0;
  for (int t = 0; t < args_.expert_count; ++t) {
    for (unsigned rest = curves_[t].search.candidates(); rest != 0; rest &= rest - 1) {
      if (job++ % kSolverWarps == warp_index()) {
        curves_[t].search.examine(__ffs(static_cast<int>(rest)) - 1);
      }
    }
  }
}

// Evaluates every curve's values, where it has some.
template <bool kJoint>
__device__ void RowSolver<kJoint>::sweep_values() {
  if (owns_curve() && first_lane()) {
    const SearchWarp& search = own().search;
    float most = 0.0F;
    for (int k = 0; k < search.value_count; ++k) {
      most = fmaxf(most, search.values[k]);
    }
    own().wide = !(most * (own().most - own().centre) <= kReach);
  }
  __syncthreads();
  for (int t = 0; t < args_.expert_count; ++t) {
    const Curve& curve = curves_[t];
    const SearchWarp& search = curve.search;
    if (search.value_count == 0) {
      continue;
    }
    float x[kWarp] = {};
    float* out = exchange(t);
    if (curve.wide) {
      const auto alpha = [&](int k) { return static_cast<double>(search.values[k]); };
      sum_wide(slice_, t, curve, search.value_count, alpha, shared_.peak_parts, out + kPeaksAt, x);
    } else {
      sum_values(slice_, t, curve, shared_.peak, x);
    }
    sums_.add(x, out);
  }
  ++passes_;
  meet();
}

template <bool kJoint>
__device__ CurvePoint RowSolver<kJoint>::take_values() {
  const Curve& curve = own();
  const int lane = lane_index();
  const int count = curve.search.value_count;
  if (count == 0) {
    return {};
  }
  float peak = 0.0F;
  const float mine = total(warp_index(), curve.wide && lane < 3 * count ? lane / 3 : -1, peak);
  const int value = lane < count ? lane : 0;
  const Sums at = sums_of(mine, value);
  const float its_peak = __shfl_sync(kAllLanes, peak, 3 * value);
  const double alpha = curve.search.values[value];
  return curve.wide ? wide_point(curve, alpha, its_peak, at) : narrow_point(curve, alpha, at);
}

template <bool kJoint>
__device__ void RowSolver<kJoint>::combine() {
  __syncthreads();
  if (threadIdx.x == 0) {
    int best = 0;
    const double tie = kTie * curves_[0].search.scale();
    for (int t = 1; t < args_.expert_count && by_mean(); ++t) {
      // Experts that all reach the targets tie but for the last digits: the first of them is taken.
      best = curves_[t].search.answer_loss() < curves_[best].search.answer_loss() - tie ? t : best;
    }
    for (int t = 0; t < args_.expert_count; ++t) {
      const double alone = curves_[t].search.answer().alpha;
      double alpha = args_.alpha[t];
      if (by_mean()) {
        alpha = t == best ? alone : 0.0;
      } else if (args_.combine != Combine::static_alpha) {
        alpha = alone / args_.expert_count;  // where `joint` starts
      }
      shared_.alpha[t] = static_cast<float>(alpha);
    }
  }
  __syncthreads();
}

template <bool kJoint>
__device__ void RowSolver<kJoint>::solve_joint() {
  const int experts = args_.expert_count;
  if (threadIdx.x == 0) {
    double alpha[kMaxExperts];
    double moments[kMaxExperts];
    for (int t = 0; t < experts; ++t) {
      alpha[t] = shared_.alpha[t];
      moments[t] = curves_[t].search.answer().mean;
    }
    joint_->search.start(experts, args_.alpha_max, alpha, moments, JointPrecision::of_float());
  }
  const int tiles = Tile::count(experts);
  for (int evaluation = 0; evaluation < kMostEvaluations; ++evaluation) {
    const Mixture mixture = {shared_.alpha, curves_, experts, Mixture::is_wide(shared_.alpha, curves_, experts)};
    float peak = shared_.peak;
    if (mixture.wide) {
      peak = mixture.peak(slice_, shared_.peak_parts);
      if (threadIdx.x == 0) {
        exchange(0)[tiles * kWarp] = peak;
      }
    }
    Tile tile = {0, 0};
    for (int index = 0; index < tiles; ++index, tile.next()) {
      float x[kWarp] = {};
      sum_tile(slice_, mixture, tile, peak, x);
      sums_.add(x, exchange(0) + index * kWarp);
    }
    ++passes_;
    meet();
    gather_joint(mixture.wide);
    ++round_;
    __syncthreads();
    if (threadIdx.x == 0) {
      joint_->searching = take_joint(mixture.wide);
      const double* next = joint_->searching ? joint_->search.trial() : joint_->search.answer();
      for (int t = 0; t < experts; ++t) {
        shared_.alpha[t] = static_cast<float>(next[t]);
      }
    }
    __syncthreads();
    if (!joint_->searching) {
      return;
    }
  }
}

// A warp adds up one tile. Where it is wide, the totals lie below the cluster's peak, which goes to `means[0]`.
template <bool kJoint>
__device__ void RowSolver<kJoint>::gather_joint(bool wide) {
  const int tiles = Tile::count(args_.expert_count);
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

// Moves the totals to Δ centred under P, and hands them to the search.
template <bool kJoint>
__device__ bool RowSolver<kJoint>::take_joint(bool wide) {
  JointState& state = *joint_;
  const double weight = state.totals[0];
  const double rise = weight * shared_.per_weight;
  const double per = wide ? 1.0 / weight : shared_.per_weight / (1.0 + rise);
  double cumulant = wide ? state.means[0] - shared_.peak + log(rise) : log1p(rise);
  int pair = 0;
  for (int t = 0; t < args_.expert_count; ++t) {
    const double shift = curves_[t].zero_mean;
    cumulant -= static_cast<double>(shared_.alpha[t]) * shift;
    state.means[t] = state.totals[Tile::place(1 + t, 0)] * per - shift;
    for (int s = 0; s <= t; ++s, ++pair) {
      const double other = curves_[s].zero_mean;
      // E[(Δ_t − x)(Δ_s − y)] = E[Δ_tΔ_s] − x·E[Δ_s − y] − y·E[Δ_t − x] − xy
      state.products[pair] = state.totals[Tile::place(1 + t, 1 + s)] * per - shift * state.means[s] -
                             other * state.means[t] - shift * other;
    }
  }
  return state.search.take(cumulant, state.means, state.products);
}

// Fuses, and the first block reports: the others send it their sums and are done.
template <bool kJoint>
__device__ void RowSolver<kJoint>::finish() {
  constexpr int kNumbers = 8;  // a block: three sums, and at the end its peak
  const Mixture mixture = {shared_.alpha, curves_, args_.expert_count,
                           Mixture::is_wide(shared_.alpha, curves_, args_.expert_count)};
  float peak = mixture.wide ? mixture.peak(slice_, shared_.peak_parts) : shared_.peak;
  float x[4] = {};
  fuse(slice_, mixture, peak, x);
  float* slot = cluster_.of(exchange_ + round_ % 2 * SharedPlan::exchange_floats(args_.expert_count), 0) +
                cluster_.rank * kNumbers;
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
    const bool is_expert = lane < args_.expert_count;
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
    for (int t = 0; t < args_.expert_count; ++t) {
      zero += shared_.alpha[t] * curves_[t].zero_mean;
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

template <bool kJoint>
__global__ void __launch_bounds__(kSolverThreads, 1)
    solve_rows(const __grid_constant__ FusionArgs args, const __grid_constant__ SolverLayout layout) {
  const int row = static_cast<int>(blockIdx.x) / Cluster().blocks;
  if (args.active != nullptr && args.active[row] == 0) {
    return;
  }
  RowSolver<kJoint> solver(args, layout, shared_memory<unsigned char>());
  solver.solve();
}

// What the launcher wants to know of a device.
struct Card {
  int shared_bytes;  // the most of a block
  int processors;
  int most_blocks;    // of a cluster that any number of processors can run
  int wide_clusters;  // how many of kSolverBlocks can run at once
};

constexpr int kPortableBlocks = 8;

bool is_joint(const FusionArgs& args) { return args.combine == Combine::joint && args.expert_count > 1; }

int attribute(cudaDeviceAttr which, int device) {
  int value = 0;
  check(cudaDeviceGetAttribute(&value, which, device), "asking for what the device can do");
  return value;
}

Card ask_card(int device) {
  Card card = {attribute(cudaDevAttrMaxSharedMemoryPerBlockOptin, device),
               attribute(cudaDevAttrMultiProcessorCount, device), 1, 0};
  if (attribute(cudaDevAttrComputeCapabilityMajor, device) < 9) {
    return card;
  }
  card.most_blocks = kPortableBlocks;
  // How the processors are grouped differs from one card to the next, so it says itself how many clusters fit.
  const auto* kernel = reinterpret_cast<const void*>(&solve_rows<false>);
  cudaLaunchAttribute cluster = {};
  cluster.id = cudaLaunchAttributeClusterDimension;
  cluster.val.clusterDim.x = kSolverBlocks;
  cluster.val.clusterDim.y = 1;
  cluster.val.clusterDim.z = 1;
  cudaLaunchConfig_t config = {};
  config.gridDim = dim3(kSolverBlocks);
  config.blockDim = dim3(kSolverThreads);
  config.dynamicSmemBytes = card.shared_bytes;
  config.attrs = &cluster;
  config.numAttrs = 1;
  check(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, card.shared_bytes),
        "asking for shared memory");
  const bool allowed = cudaFuncSetAttribute(kernel, cudaFuncAttributeNonPortableClusterSizeAllowed, 1) == cudaSuccess;
  if (!allowed || cudaOccupancyMaxActiveClusters(&card.wide_clusters, kernel, &config) != cudaSuccess) {
    card.wide_clusters = 0;
    static_cast<void>(cudaGetLastError());  // it is no error of what comes next
  }
  return card;
}

Card card() {
  static std::mutex mutex;
  static std::map<int, Card> cards;
  int device = 0;
  check(cudaGetDevice(&device), "asking for the device");
  const std::lock_guard lock(mutex);
  const auto found = cards.find(device);
  return found != cards.end() ? found->second : cards.emplace(device, ask_card(device)).first->second;
}

bool aligned(const Logits& logits) {
  return reinterpret_cast<uintptr_t>(logits.data) % sizeof(Four) == 0 && logits.stride % 4 == 0;
}

SolverLayout layout_of(const FusionArgs& args, int cluster, int shared_bytes) {
  SolverLayout layout = {};
  layout.groups = static_cast<int>(((args.vocab + 3) / 4 + cluster - 1) / cluster);
  layout.aligned = aligned(args.large) && aligned({args.fused, args.fused_stride});
  for (int t = 0; t < args.expert_count; ++t) {
    layout.aligned = layout.aligned && aligned(args.experts[t]) && aligned(args.bases[t]);
    int same = 0;
    while (args.bases[same].data != args.bases[t].data || args.bases[same].stride != args.bases[t].stride) {
      ++same;
    }
    layout.base_slot[t] = same < t ? layout.base_slot[same] : layout.bases++;
  }
  layout.logits_at = SharedPlan(args.expert_count, is_joint(args)).logits;
  const int64_t array = static_cast<int64_t>(layout.groups) * sizeof(Four);
  const int64_t fit = std::max<int64_t>(shared_bytes - layout.logits_at, 0) / array;
  layout.resident = static_cast<int>(std::min<int64_t>(fit, 1 + args.expert_count + layout.bases));
  return layout;
}

}  // namespace

FusionShape fusion_shape(const FusionArgs& args) {
  const Card has = card();
  const int64_t groups = (args.vocab + 3) / 4;
  const auto keeps_all = [&](int cluster) {
    const SolverLayout layout = layout_of(args, cluster, has.shared_bytes);
    return layout.resident == 1 + args.expert_count + layout.bases;
  };
  int most = has.most_blocks;
  if (has.wide_clusters > 0 && (args.rows <= has.wide_clusters || !keeps_all(most))) {
    most = kSolverBlocks;
  }
  // As many blocks as there are processors, or as many as it takes to read the logits once; but none without work.
  int cluster = 1;
  while (cluster < most && groups > static_cast<int64_t>(cluster) * kSolverThreads &&
         (2 * cluster * args.rows <= has.processors || !keeps_all(cluster))) {
    cluster *= 2;
  }
  const SolverLayout layout = layout_of(args, cluster, has.shared_bytes);
  return {cluster, layout.logits_at + layout.resident * layout.groups * static_cast<int>(sizeof(Four))};
}

void solve(const FusionArgs& args, const FusionShape& shape, Stream stream) {
  const SolverLayout layout = layout_of(args, shape.cluster, shape.shared_bytes);
  Shape launched = {};
  launched.grid = dim3(static_cast<unsigned>(args.rows * shape.cluster));
  launched.block = dim3(kSolverThreads);
  launched.shared_bytes = static_cast<size_t>(std::max(shape.shared_bytes, layout.logits_at));
  launched.cluster = static_cast<unsigned>(shape.cluster);
  launch(is_joint(args) ? &solve_rows<true> : &solve_rows<false>, launched, stream, args, layout);
}

void solve(const FusionArgs& args, Stream stream) { solve(args, fusion_shape(args), stream); }

}  // namespace dlf::cuda
