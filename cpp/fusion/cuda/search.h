#pragma once

#include "fusion/cuda/reduce.h"
#include "fusion/solver_math.h"

// The search of curve_search.h, by the warps of a block: a lane handles one evaluated point and the cell to its right,
// and a warp examines a cell with all its lanes. The sums are of float32, so the tolerances are larger.
namespace dlf::cuda {

inline constexpr double kNoDistance = 1e-11;  // divergences up to this are rounding of float32 logits
inline constexpr double kLeastGain = 1e-8;    // least gain that is worth another sweep, as a share of the loss at α = 0
inline constexpr double kSettledLoss = 1e-7;  // tolerated error of the least loss, as a share of that at α = 0
// Errors and widths in α, measured by the relative change of f or g over them.
inline constexpr double kSettled = 1e-4;    // errors up to this are not worth another sweep,
inline constexpr double kSettledBy = 2e-3;  // unless they change f or g by more than this
// Cells narrower than this have no model: it would amplify the rounding of the sums, in the slopes by the width and in
// their slopes by its square. Their ends are accurate, and between them a straight line is enough.
inline constexpr double kNarrow = 1e-2;
inline constexpr double kNarrowest = 4e-3;  // width of a cell beside a minimum that is nearly known
inline constexpr double kModelled = 8e-2;   // width of a cell that still has a model
inline constexpr double kClosed = 1e-4;     // cells up to this width, as a share of α, are narrow too
inline constexpr int kMostSweeps = 8;
inline constexpr int kTrusted = 3;       // after this many sweeps, points are spread out evenly
inline constexpr int kSweepValues = 10;  // most values of α in one sweep

// Its longer functions are not inlined, so that all kernels share them and agree to the bit: which products and sums
// the compiler contracts to one rounding may depend on the code around them.
class SearchWarp {
 public:
  __device__ void start(const Loss& loss) {
    if (lane_index() == 0) {
      loss_ = loss;
      scale_ = loss.value(0.0, 0.0);
      answer_ = points_[0];
      answer_loss_ = loss.value(divergences(points_[0]));
      sweeps = 1;
    }
    __syncwarp();
  }

  // Puts the first points, in order: lane i has number i.
  __device__ void put(const CurvePoint& point, int count) {
    if (lane_index() < count) {
      points_[lane_index()] = point;
    }
    if (lane_index() == 0) {
      count_ = count;
      last_ = 1U << (count - 1);
    }
    __syncwarp();
  }
  // Appends points, for a search that only chooses among them.
  __device__ void append(const CurvePoint& point) {
    if (lane_index() < value_count) {
      points_[count_ + lane_index()] = point;
    }
    __syncwarp();
    if (lane_index() == 0) {
      count_ += value_count;
      ++sweeps;
    }
    __syncwarp();
  }
  // Takes the points that plan() asked for: lane k has that of values[k].
  __device__ void take(const CurvePoint& point) {
    if (lane_index() < value_count) {
      points_[slots_[lane_index()]] = point;
    }
    if (lane_index() == 0) {
      ++sweeps;
    }
    __syncwarp();
  }

  // Makes the best of the points the answer, and finds the cells that may hold a better one.
  __device__ void survey();
  // Reports what the model predicts for a cell. Any warp may do this for any search.
  __device__ __noinline__ void examine(int cell) {
    assume_shared(this);
    if (is_narrow(points_[cell], points_[cell + 1])) {
      examine_narrow(cell);
    } else {
      examine_model(cell);
    }
  }
  // Updates the answer and the open cells from the reports.
  __device__ void conclude();
  // Plans the values of the next sweep: none when the answer is known, or cannot get below the loss `rival`.
  __device__ void plan(double rival);

  __device__ unsigned candidates() const { return candidates_; }
  __device__ const CurvePoint& answer() const { return answer_; }
  __device__ double answer_loss() const { return answer_loss_; }
  __device__ double scale() const { return scale_; }

  float values[kSweepValues];  // of the next sweep
  int value_count;
  int sweeps;

 private:
  static constexpr int kServed = 6;   // most cells that one sweep refines
  static constexpr int kWaiting = 5;  // most cells that wait for the next
  static constexpr int kSamples = 30;
  static_assert(kSweepValues + 2 * (kServed + kWaiting) <= kWarp);

  struct Report {
    CurvePoint point;  // where the loss is least
    double loss;
    double error;  // of α
    float floor;   // lower bound of the loss: the model's, less its error
    int settled;   // α is known well enough
  };

  __device__ void examine_narrow(int cell);
  __device__ void examine_model(int cell);
  __device__ bool is_narrow(const CurvePoint& from, const CurvePoint& to) const {
    const Divergences left = divergences(from);
    const Divergences right = divergences(to);
    const auto straight = [](double start, double end, double enter, double leave) {
      return end - start <= kNarrow * end && enter <= 2.0 * leave && leave <= 2.0 * enter;
    };
    return to.alpha - from.alpha <= kClosed * to.alpha ||
           ((loss_.f_weight == 0.0 || straight(left.f, right.f, left.f_slope, right.f_slope)) &&
            (loss_.g_weight == 0.0 || straight(left.g, right.g, left.g_slope, right.g_slope)));
  }
  // Relative rate at which f or g changes with α, the larger of both: 2/α where they are quadratic.
  __device__ double rate_at(const CurvePoint& point) const {
    const Divergences at = divergences(point);
    return larger(loss_.f_weight * at.f_slope / (at.f + 1e-30), loss_.g_weight * at.g_slope / (at.g + 1e-30)) + 1e-30;
  }
  __device__ double loss_at(const CurvePoint& point) const { return loss_.value(divergences(point)); }
  __device__ bool is_cell(int left) const { return left >= 0 && left + 1 < count_ && (last_ >> left & 1U) == 0; }

  Loss loss_;
  double scale_;
  double answer_loss_;
  CurvePoint answer_;
  int count_;
  unsigned last_;  // points that no cell follows: the next one in this list need not be the next on the curve
  unsigned candidates_;
  unsigned open_;
  int slots_[kSweepValues];  // indices of the values' points
  CurvePoint points_[kWarp];
  Report reports_[kWarp];  // of the cells, by their left points
};

// Lane that holds the least of the lanes' numbers, all >= 0; the first of equals.
__device__ inline int least_lane(double x) {
  const unsigned bits = __float_as_uint(static_cast<float>(x));
  return __ffs(static_cast<int>(__ballot_sync(kAllLanes, bits == __reduce_min_sync(kAllLanes, bits)))) - 1;
}

__device__ inline double of_lane(double x, int lane) { return __shfl_sync(kAllLanes, x, lane); }

__device__ __noinline__ void SearchWarp::survey() {
  assume_shared(this);
  const int lane = lane_index();
  const bool held = lane < count_;
  const CurvePoint here = points_[held ? lane : 0];
  const double loss = loss_at(here);
  const int best = least_lane(loss);
  const double best_loss = of_lane(loss, best);
  const bool silent = larger(loss_.f_weight * loss_.a, loss_.g_weight * loss_.b) <= kNoDistance;
  const double ceiling = smaller(answer_loss_, best_loss);
  bool candidate = false;
  if (is_cell(lane)) {
    candidate = loss_.bound(divergences(here), divergences(points_[lane + 1])) < ceiling - kLeastGain * scale_;
  }
  const unsigned candidates = __ballot_sync(kAllLanes, candidate && !silent);
  __syncwarp();  // all have read what the first lane overwrites: a vote keeps lanes together but orders no memory
  if (lane == 0) {
    candidates_ = candidates;
    open_ = 0;
    if (silent) {  // the expert agrees with its base
      answer_ = CurvePoint{};
      answer_loss_ = scale_;
    } else if (best_loss < answer_loss_) {
      answer_ = points_[best];
      answer_loss_ = best_loss;
    }
  }
  __syncwarp();
}

// Puts the least loss where the straight line between the slopes at both ends crosses 0.
__device__ inline void SearchWarp::examine_narrow(int cell) {
  const CurvePoint& left = points_[cell];
  const CurvePoint& right = points_[cell + 1];
  const double width = right.alpha - left.alpha;
  const double enter = loss_.slope(divergences(left));
  const double leave = loss_.slope(divergences(right));
  const double loss = loss_at(left);
  double t = loss_at(right) < loss ? 1.0 : 0.0;
  double least = smaller(loss, loss_at(right));
  if (enter < 0.0 && leave > 0.0) {
    t = enter / (enter - leave);
    least = larger(smaller(loss + enter * t * width, least), 0.0);
  }
  if (lane_index() == 0) {
    const CurvePoint point = {left.alpha + t * width, left.cumulant + t * (right.cumulant - left.cumulant),
                              left.mean + t * (right.mean - left.mean),
                              left.variance + t * (right.variance - left.variance)};
    reports_[cell] = {point, least, 0.0, static_cast<float>(least), true};
  }
  __syncwarp();
}

// All lanes but two sample the cell's model. Each of the two takes a model over this cell and a neighbour, and measures
// at the point between them how much smaller the fine model's error is than its difference from the coarse one.
__device__ inline void SearchWarp::examine_model(int cell) {
  const int lane = lane_index();
  const bool judge = lane >= kSamples;
  const int first = judge ? cell - (lane == kSamples ? 1 : 0) : cell;
  const bool judges = judge && is_cell(first) && is_cell(first + 1);
  const CurvePoint left = points_[judges ? first : cell];
  const CurvePoint right = points_[judges ? first + 2 : cell + 1];
  const CurvePoint between = points_[judges ? first + 1 : cell];
  const CurveModel model(left, right);
  double t = clamp(static_cast<double>(lane) * (1.0 / (kSamples - 1)), 1e-6, 1.0 - 1e-6);
  if (judges) {
    t = (between.alpha - left.alpha) / (right.alpha - left.alpha);
  }
  Divergences fine = model.fine(t);
  Divergences coarse = model.coarse(t);

  const Divergences truth = divergences(between);
  const double missed = loss_.f_weight * fabs(fine.f - truth.f) + loss_.g_weight * fabs(fine.g - truth.g);
  const double against = loss_.f_weight * fabs(coarse.f - truth.f) + loss_.g_weight * fabs(coarse.g - truth.g);
  // Two cells of unequal widths say little.
  const double judged = fabs(t - 0.5) < 0.2 && missed < against ? missed / against : 1.0;
  const double share_here = judges ? judged : 0.0;
  double share = larger(of_lane(share_here, kSamples), of_lane(share_here, kSamples + 1));
  share = share > 0.0 ? larger(share, 1.0 / 64) : 1.0;

  const double sampled = loss_.value(fine);
  const double below = sampled - share * fabs(sampled - loss_.value(coarse));
  const bool inside = lane > 0 && lane < kSamples - 1;
  float floor = -largest_lane(inside ? -static_cast<float>(below) : -HUGE_VALF);
  const int lowest = least_lane(judge ? HUGE_VAL : sampled);
  const int before = lowest > 0 ? lowest - 1 : 0;
  const int after = lowest < kSamples - 1 ? lowest + 1 : lowest;
  double slope = loss_.slope(fine);
  double low = of_lane(t, before);
  double high = of_lane(t, after);
  double low_slope = of_lane(slope, before);
  double high_slope = of_lane(slope, after);

  const CurvePoint start = points_[cell];
  const double width = points_[cell + 1].alpha - start.alpha;
  Report report = {{}, of_lane(sampled, lowest), width, floor, false};
  t = of_lane(t, lowest);
  const CurveModel here(start, points_[cell + 1]);
  if (low_slope < 0.0 && high_slope > 0.0) {
    for (int round = 0; round < 2; ++round) {
      const double apart = (high - low) * (1.0 / (kWarp + 1));
      slope = loss_.slope(here.fine(low + apart * (lane + 1)));
      const unsigned risen = __ballot_sync(kAllLanes, slope >= 0.0);
      const int turn = risen == 0 ? kWarp : __ffs(static_cast<int>(risen)) - 1;
      const double next_low = turn > 0 ? of_lane(slope, turn - 1) : low_slope;
      high_slope = turn < kWarp ? of_lane(slope, turn) : high_slope;
      low_slope = next_low;
      high = turn < kWarp ? low + apart * (turn + 1) : high;
      low += apart * turn;
    }
    t = low + (high - low) * (low_slope / (low_slope - high_slope));
    const double aside = smaller(smaller(t, 1.0 - t), 1.0 / 64);
    const double nearby = t + (lane == 1 ? aside : lane == 2 ? -aside : 0.0);
    fine = here.fine(nearby);
    coarse = here.coarse(nearby);
    slope = loss_.slope(fine);
    const double bend = (of_lane(slope, 1) - of_lane(slope, 2)) / (2.0 * aside);
    const double slip = share * fabs(of_lane(slope - loss_.slope(coarse), 0));
    const double loss = of_lane(loss_.value(fine), 0);
    const double slack = share * fabs(loss - of_lane(loss_.value(coarse), 0));
    report.error = bend > 0.0 ? smaller(width * slip / bend, width) : width;
    report.loss = loss;
    report.floor = fminf(floor, static_cast<float>(loss - slack));
    const double settled = smaller(kSettled, kSettledBy / sqrt(scale_));
    report.settled = report.error * rate_at(here.point(t)) <= settled && slack <= kSettledLoss * scale_;
  }
  report.point = here.point(t);
  if (lane == 0) {
    reports_[cell] = report;
  }
  __syncwarp();
}

__device__ __noinline__ void SearchWarp::conclude() {
  assume_shared(this);
  const int lane = lane_index();
  const bool candidate = (candidates_ >> lane & 1U) != 0;
  const Report& report = reports_[lane];
  const double before = answer_loss_;
  const bool better = candidate && report.settled && report.loss < before;
  const int best = least_lane(better ? report.loss : HUGE_VAL);
  const bool found = __any_sync(kAllLanes, better);
  const double loss = found ? reports_[best].loss : before;
  const bool open = candidate && !report.settled && report.floor < loss - kLeastGain * scale_;
  const unsigned mask = __ballot_sync(kAllLanes, open);
  __syncwarp();
  if (lane == 0) {
    open_ = mask;
    if (found) {
      answer_ = reports_[best].point;
      answer_loss_ = loss;
    }
  }
  __syncwarp();
}

__device__ __noinline__ void SearchWarp::plan(double rival) {
  assume_shared(this);
  const int lane = lane_index();
  const Report& report = reports_[lane];
  bool kept = (open_ >> lane & 1U) != 0 && report.floor < smaller(answer_loss_ - kLeastGain * scale_, rival) &&
              sweeps < kMostSweeps;
  const unsigned open = __ballot_sync(kAllLanes, kept);
  if (open == 0) {
    if (lane == 0) {
      value_count = 0;
    }
    __syncwarp();
    return;
  }
  // Rank the cells, the most promising first.
  const int cells = __popc(open);
  const float floor = kept ? report.floor : HUGE_VALF;
  int rank = 0;
  for (unsigned rest = open; rest != 0; rest &= rest - 1) {
    const int other = __ffs(static_cast<int>(rest)) - 1;
    const float its = __shfl_sync(kAllLanes, floor, other);
    rank += its < floor || (its == floor && other < lane) ? 1 : 0;
  }
  kept = kept && rank < kServed + kWaiting;
  const int served = cells < kServed ? cells : kServed;
  int share = 0;
  if (kept && rank < served) {
    share = served == 1 ? kSweepValues : rank == 0 ? kSweepValues / 2 : kSweepValues / 2 / (served - 1);
  }
  const CurvePoint left = points_[kept ? lane : 0];
  const CurvePoint right = points_[kept ? lane + 1 : 0];
  const double width = right.alpha - left.alpha;
  float mine[kSweepValues] = {};
  int count = 0;
  const auto propose = [&](double alpha) {
    const float value = static_cast<float>(alpha);
    if (value < right.alpha && value > (count > 0 ? static_cast<double>(mine[count - 1]) : left.alpha)) {
      mine[count++] = value;
    }
  };
  const double rate = kept ? rate_at(report.point) : 1.0;
  double around = larger(2.0 * report.error, kModelled / rate);
  if (2.0 * report.error < kNarrowest / rate) {
    around = kNarrowest / rate;
  }
  if (share >= 3 && around < width / 4 && sweeps <= kTrusted) {
    // The minimum is nearly known: bracket it.
    propose(report.point.alpha - around);
    propose(report.point.alpha);
    propose(report.point.alpha + around);
  } else {
    for (int k = 1; k <= share; ++k) {
      const double part = static_cast<double>(k) / (share + 1);
      // A steep curve has its minimum near 0: the first cell has more points there.
      propose(left.alpha + width * (left.alpha > 0.0 ? part : part * part * part));
    }
  }
  // The cell's points and values go behind those of the lanes before.
  const unsigned keeping = __ballot_sync(kAllLanes, kept);
  int at = 0;
  int value = 0;
  int values_of_all = 0;
  int points_of_all = 0;
  unsigned ends = 0;
  for (unsigned rest = keeping; rest != 0; rest &= rest - 1) {
    const int other = __ffs(static_cast<int>(rest)) - 1;
    const int its = __shfl_sync(kAllLanes, count, other);
    at += other < lane ? its + 2 : 0;
    value += other < lane ? its : 0;
    values_of_all += its;
    points_of_all += its + 2;
    ends |= 1U << (points_of_all - 1);
  }
  __syncwarp();
  if (kept) {
    points_[at] = left;
    for (int k = 0; k < count; ++k) {
      values[value + k] = mine[k];
      slots_[value + k] = at + 1 + k;
    }
    points_[at + 1 + count] = right;
  }
  if (lane == 0) {
    value_count = values_of_all;
    count_ = points_of_all;
    last_ = ends;
  }
  __syncwarp();
}

}  // namespace dlf::cuda
