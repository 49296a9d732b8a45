#pragma once

#include "fusion/solver_math.h"

// Searches the α of one expert: chooses the points of its curve for the next sweep until the answer is known.
//
// The loss may have two minima, so this is branch and bound: the points evaluated so far cut [0, α_max] into cells, and
// a cell is dropped once nothing in it can beat the best known loss, by the box that f and g can't leave or by a model
// of the curve whose error is known to be small. Points go into the remaining cells until the minimum is known to a
// millionth.
namespace dlf {

inline constexpr double kNoDistance = 1e-11;  // divergences up to this are rounding of float32 logits
inline constexpr double kTolerance = 1e-11;   // of the loss at α = 0: the least gain that is worth another sweep
inline constexpr double kSettled = 1e-6;      // relative error of α that is not worth another sweep
inline constexpr int kSearchSweeps = 11;
inline constexpr int kTrustedSweeps = 2;  // after this many, points are also spread over a cell
inline constexpr int kSearchCapacity = kSearchSweeps * kSweepPoints;

class CurveSearch {
 public:
  // Values of α in the first sweep.
  static constexpr int kFirstPoints = 9;
  static AlphaRange first_points(double alpha_max) { return {0.0, alpha_max, kFirstPoints}; }

  void clear() {
    count_ = 0;
    sweeps_ = 0;
  }

  // May be called after the first points were added: the targets come from the same sweep.
  void set_loss(const Loss& loss) {
    loss_ = loss;
    scale_ = loss.value(0.0, 0.0);
  }

  void add(const CurvePoint& point) {
    for (int i = 0; i < count_; ++i) {
      if (points_[i].alpha == point.alpha) {
        return;  // no cell has a width of 0
      }
    }
    int at = count_++;
    for (; at > 0 && points_[at - 1].alpha > point.alpha; --at) {
      points_[at] = points_[at - 1];
    }
    points_[at] = point;
  }

  // Updates the answer and the open cells from the points evaluated so far.
  void look();

  // Plans the next sweep after look(): writes its ranges of α and returns how many they are; 0 when the answer is
  // known, or cannot get below the loss `rival`.
  int plan(double rival, AlphaRange* ranges) const;

  // Makes the best of the points evaluated so far the answer.
  void choose();

  int count() const { return count_; }
  const CurvePoint& point(int index) const { return points_[index]; }
  const CurvePoint& answer() const { return answer_; }
  double answer_loss() const { return answer_loss_; }
  double scale() const { return scale_; }  // the loss at α = 0

 private:
  // The model's prediction for one cell.
  struct Report {
    int cell;
    double alpha;  // where the loss is least
    double loss;
    double floor;  // lower bound of the loss: the model's, less its error
    double error;  // of alpha
    bool settled;  // alpha is known well enough
    CurvePoint point;
  };

  static constexpr int kOpen = 4;  // most cells that one sweep refines; the others wait
  static_assert(2 * kOpen <= kSweepRanges);

  Report examine(int cell) const;
  double fine_share(int cell) const;
  void offer(const CurvePoint& point, double loss);

  Loss loss_;
  double scale_ = 0.0;
  int count_ = 0;
  int sweeps_ = 0;
  CurvePoint points_[kSearchCapacity];
  CurvePoint answer_ = {};
  double answer_loss_ = 0.0;
  Report open_[kOpen];  // cells that may hold the minimum, the most promising first
  int opened_ = 0;
};

// Keeps the better of two answers; of equals, the smaller α.
inline void CurveSearch::offer(const CurvePoint& point, double loss) {
  const double noise = 1e-14 * scale_;
  if (loss < answer_loss_ - noise || (loss <= answer_loss_ + noise && point.alpha < answer_.alpha)) {
    answer_ = point;
    answer_loss_ = loss;
  }
}

inline void CurveSearch::choose() {
  answer_ = points_[0];
  answer_loss_ = loss_.value(divergences(points_[0]));
  for (int i = 1; i < count_; ++i) {
    offer(points_[i], loss_.value(divergences(points_[i])));
  }
}

// Estimates the fine model's error as a share of |fine − coarse|, which is about the coarse model's error. It is
// measured one size up: over this cell and the one beside it, both models are compared with the known point between
// them. Halving the width makes the share four times smaller still; that is left as a margin.
inline double CurveSearch::fine_share(int cell) const {
  double share = 0.0;
  for (int i = cell > 0 ? cell - 1 : 0; i <= cell && i + 2 < count_; ++i) {
    const CurveModel model(points_[i], points_[i + 2]);
    const Divergences truth = divergences(points_[i + 1]);
    const double t = (points_[i + 1].alpha - points_[i].alpha) / (points_[i + 2].alpha - points_[i].alpha);
    const Divergences fine = model.fine(t);
    const Divergences coarse = model.coarse(t);
    const double missed = loss_.f_weight * fabs(fine.f - truth.f) + loss_.g_weight * fabs(fine.g - truth.g);
    const double against = loss_.f_weight * fabs(coarse.f - truth.f) + loss_.g_weight * fabs(coarse.g - truth.g);
    // Two cells of unequal widths say little.
    share = fabs(t - 0.5) < 0.2 && missed < against ? larger(share, missed / against) : 1.0;
  }
  return share > 0.0 ? larger(share, 1.0 / 64) : 1.0;
}

inline CurveSearch::Report CurveSearch::examine(int cell) const {
  constexpr int kSteps = 16;
  const CurvePoint& left = points_[cell];
  const CurvePoint& right = points_[cell + 1];
  const CurveModel model(left, right);
  const double width = right.alpha - left.alpha;
  const double share = fine_share(cell);
  Report report = {cell, 0.0, HUGE_VAL, HUGE_VAL, width, false, {}};
  int lowest = 0;
  for (int k = 0; k <= kSteps; ++k) {
    const double t = static_cast<double>(k) / kSteps;
    const double fine = loss_.value(model.fine(t));
    if (fine < report.loss) {
      report.loss = fine;
      lowest = k;
    }
    if (k > 0 && k < kSteps) {
      const double coarse = loss_.value(model.coarse(t));
      report.floor = smaller(report.floor, fine - share * fabs(fine - coarse));
    }
  }
  double low = larger((lowest - 1.0) / kSteps, 1e-6);
  double high = smaller((lowest + 1.0) / kSteps, 1.0 - 1e-6);
  double t = static_cast<double>(lowest) / kSteps;
  if (loss_.slope(model.fine(low)) < 0.0 && loss_.slope(model.fine(high)) > 0.0) {
    for (int step = 0; step < 36; ++step) {
      t = 0.5 * (low + high);
      (loss_.slope(model.fine(t)) < 0.0 ? low : high) = t;
    }
    const double aside = smaller(smaller(t, 1.0 - t), 1.0 / 64);
    const double bend = (loss_.slope(model.fine(t + aside)) - loss_.slope(model.fine(t - aside))) / (2.0 * aside);
    const double slip = share * fabs(loss_.slope(model.fine(t)) - loss_.slope(model.coarse(t)));
    report.error = bend > 0.0 ? smaller(width * slip / bend, width) : width;
    const double fine = loss_.value(model.fine(t));
    const double slack = share * fabs(fine - loss_.value(model.coarse(t)));
    report.loss = fine;
    report.floor = smaller(report.floor, fine - slack);
    report.settled = report.error <= kSettled * model.alpha(t) && slack <= 1e-8 * scale_;
  }
  report.settled = report.settled || width <= 1e-7 * right.alpha;
  report.point = model.point(t);
  report.alpha = report.point.alpha;
  return report;
}

inline void CurveSearch::look() {
  ++sweeps_;
  opened_ = 0;
  choose();
  if (larger(loss_.f_weight * loss_.a, loss_.g_weight * loss_.b) <= kNoDistance) {
    answer_ = points_[0];
    answer_loss_ = scale_;
    return;  // the expert agrees with its base
  }
  for (int i = 0; i + 1 < count_; ++i) {
    if (loss_.bound(divergences(points_[i]), divergences(points_[i + 1])) >= answer_loss_ - kTolerance * scale_) {
      continue;
    }
    const Report report = examine(i);
    if (report.floor >= answer_loss_ - kTolerance * scale_) {
      continue;
    }
    if (report.settled) {
      offer(report.point, report.loss);
      continue;
    }
    int at = opened_ < kOpen ? opened_++ : kOpen;
    for (; at > 0 && open_[at - 1].floor > report.floor; --at) {
      if (at < kOpen) {
        open_[at] = open_[at - 1];
      }
    }
    if (at < kOpen) {
      open_[at] = report;
    }
  }
}

inline int CurveSearch::plan(double rival, AlphaRange* ranges) const {
  // A settled cell may have lowered the best loss since look() listed the open ones.
  const double ceiling = smaller(answer_loss_ - kTolerance * scale_, rival);
  int open = opened_;
  while (open > 0 && open_[open - 1].floor >= ceiling) {
    --open;
  }
  if (sweeps_ >= kSearchSweeps) {
    return 0;
  }
  int planned = 0;
  int points = 0;
  for (int i = 0; i < open; ++i) {
    const Report& report = open_[i];
    int share = (kSweepPoints - points) / (open - i);
    if (i == 0 && open > 1) {
      share = kSweepPoints / 2;  // the most promising
    }
    points += share;
    const double left = points_[report.cell].alpha;
    const double right = points_[report.cell + 1].alpha;
    const double width = right - left;
    if (report.error < width / 8) {
      // The minimum is nearly known: bracket it.
      const double around = larger(2.0 * report.error, width / 256);
      const bool before = report.alpha - around > left + 0.1 * around;
      const bool after = report.alpha + around < right - 0.1 * around;
      ranges[planned++] = {report.alpha - (before ? around : 0.0), report.alpha + (after ? around : 0.0),
                           1 + (before ? 1 : 0) + (after ? 1 : 0)};
      // After several sweeps the model may be wrong about this curve: spread points too, so that the cell shrinks.
      if (sweeps_ <= kTrustedSweeps || share <= 3) {
        continue;
      }
      share -= 3;
    }
    const double apart = width / (share + 1);
    ranges[planned++] = {left + apart, right - apart, share};
  }
  return planned;
}

}  // namespace dlf
