#pragma once

#include <cmath>

#include "fusion/cpu/sweep.h"
#include "support/host_device.h"

// The equations of fusion, shared by the CPU and CUDA solvers. Section 2 of docs/design.md derives them.
//
// P is the large model's distribution, Δ an expert's logits less its base's, and P_α ∝ P·exp(αΔ). Everything follows
// from the cumulant function A(α) = log E_P[exp(αΔ)] and its slopes m = A' = E_{P_α}[Δ] and v = A'' = Var_{P_α}(Δ).
namespace dlf {

DLF_HOST_DEVICE inline double larger(double x, double y) { return x > y ? x : y; }
DLF_HOST_DEVICE inline double smaller(double x, double y) { return x < y ? x : y; }
DLF_HOST_DEVICE inline double clamp(double x, double low, double high) { return larger(low, smaller(x, high)); }

// Value number k of a range, exact at both ends.
DLF_HOST_DEVICE inline double alpha_of(const AlphaRange& range, int k) {
  return range.count > 1 ? range.first + (range.last - range.first) * k / (range.count - 1) : range.first;
}

// Merges `count` sums that lie `stride` apart, always in the same order, so that the answer doesn't depend on threads.
DLF_HOST_DEVICE inline BlockSum merge(const BlockSum* sums, int64_t count, int64_t stride) {
  BlockSum total = {sums[0].peak, 0.0, 0.0, 0.0};
  for (int64_t i = 1; i < count; ++i) {
    total.peak = larger(total.peak, sums[i * stride].peak);
  }
  for (int64_t i = 0; i < count; ++i) {
    const BlockSum& part = sums[i * stride];
    if (part.weight > 0.0) {  // an empty block has no peak
      const double scale = exp(part.peak - total.peak);
      total.weight += scale * part.weight;
      total.first += scale * part.first;
      total.second += scale * part.second;
    }
  }
  return total;
}

// Logarithm of a distribution's normaliser, and the mean and variance of Δ.
struct Moments {
  double log_sum;
  double mean;
  double variance;
};

DLF_HOST_DEVICE inline Moments moments(const BlockSum& sum) {
  const double mean = sum.first / sum.weight;
  return {sum.peak + log(sum.weight), mean, larger(sum.second / sum.weight - mean * mean, 0.0)};
}

// A point of the curve α → P_α, with Δ centred so that E_P[Δ] = 0: A(0) = m(0) = 0.
struct CurvePoint {
  double alpha;
  double cumulant;  // A
  double mean;      // m
  double variance;  // v
};

DLF_HOST_DEVICE inline CurvePoint curve_point(double alpha, const Moments& at_alpha, const Moments& at_zero) {
  return {alpha, at_alpha.log_sum - at_zero.log_sum - alpha * at_zero.mean, at_alpha.mean - at_zero.mean,
          at_alpha.variance};
}

// f = KL(P_α‖P) and g = KL(P‖P_α) and their slopes in α. For α >= 0 both grow with α.
struct Divergences {
  double f;
  double g;
  double f_slope;
  double g_slope;
};

DLF_HOST_DEVICE inline Divergences divergences(const CurvePoint& point) {
  return {larger(point.alpha * point.mean - point.cumulant, 0.0), larger(point.cumulant, 0.0),
          point.alpha * point.variance, point.mean};
}

// The sum of squares that α minimises: (f − a)² + (g − b)², or one of the two terms.
struct Loss {
  double a = 0.0;
  double b = 0.0;
  double f_weight = 1.0;
  double g_weight = 1.0;

  DLF_HOST_DEVICE double value(double f, double g) const {
    return f_weight * (f - a) * (f - a) + g_weight * (g - b) * (g - b);
  }
  DLF_HOST_DEVICE double value(const Divergences& at) const { return value(at.f, at.g); }
  // Half the derivative in α.
  DLF_HOST_DEVICE double slope(const Divergences& at) const {
    return f_weight * (at.f - a) * at.f_slope + g_weight * (at.g - b) * at.g_slope;
  }
  // A lower bound between two points: f and g only grow, so the curve stays in the box that they span.
  DLF_HOST_DEVICE double bound(const Divergences& left, const Divergences& right) const {
    return value(clamp(a, left.f, right.f), clamp(b, left.g, right.g));
  }
};

// The curve between two points, modelled twice: A by the quintic through A, m and v at both ends, and f and g by cubics
// through their values and slopes. The quintic is the better by two orders of the width, so their difference bounds its
// error.
class CurveModel {
 public:
  DLF_HOST_DEVICE CurveModel(const CurvePoint& left, const CurvePoint& right)
      : left_(left),
        width_(right.alpha - left.alpha),
        per_width_(1.0 / width_),
        f_(divergences(left), divergences(right), width_, true),
        g_(divergences(left), divergences(right), width_, false) {
    const double slope = width_ * left.mean;
    const double bend = width_ * width_ * left.variance;
    const double rise = right.cumulant - left.cumulant - slope - 0.5 * bend;
    const double turn = width_ * (right.mean - left.mean) - bend;
    const double twist = width_ * width_ * (right.variance - left.variance);
    quintic_[0] = left.cumulant;
    quintic_[1] = slope;
    quintic_[2] = 0.5 * bend;
    quintic_[3] = 10.0 * rise - 4.0 * turn + 0.5 * twist;
    quintic_[4] = -15.0 * rise + 7.0 * turn - twist;
    quintic_[5] = 6.0 * rise - 3.0 * turn + 0.5 * twist;
  }

  DLF_HOST_DEVICE double alpha(double t) const { return left_.alpha + t * width_; }

  // t runs from 0 at the left end to 1 at the right one.
  DLF_HOST_DEVICE CurvePoint point(double t) const {
    const double* c = quintic_;
    const double value = c[0] + t * (c[1] + t * (c[2] + t * (c[3] + t * (c[4] + t * c[5]))));
    const double first = c[1] + t * (2.0 * c[2] + t * (3.0 * c[3] + t * (4.0 * c[4] + t * 5.0 * c[5])));
    const double second = 2.0 * c[2] + t * (6.0 * c[3] + t * (12.0 * c[4] + t * 20.0 * c[5]));
    return {alpha(t), value, first * per_width_, larger(second * per_width_ * per_width_, 0.0)};
  }
  DLF_HOST_DEVICE Divergences fine(double t) const { return divergences(point(t)); }
  DLF_HOST_DEVICE Divergences coarse(double t) const {
    return {f_.value(t), g_.value(t), f_.slope(t) * per_width_, g_.slope(t) * per_width_};
  }

 private:
  struct Cubic {
    double c[4];

    DLF_HOST_DEVICE Cubic(const Divergences& left, const Divergences& right, double width, bool of_f) {
      const double start = of_f ? left.f : left.g;
      const double rise = (of_f ? right.f : right.g) - start;
      const double enter = width * (of_f ? left.f_slope : left.g_slope);
      const double leave = width * (of_f ? right.f_slope : right.g_slope);
      c[0] = start;
      c[1] = enter;
      c[2] = 3.0 * rise - 2.0 * enter - leave;
      c[3] = enter + leave - 2.0 * rise;
    }
    DLF_HOST_DEVICE double value(double t) const { return c[0] + t * (c[1] + t * (c[2] + t * c[3])); }
    DLF_HOST_DEVICE double slope(double t) const { return c[1] + t * (2.0 * c[2] + t * 3.0 * c[3]); }
  };

  CurvePoint left_;
  double width_;
  double per_width_;
  double quintic_[6];
  Cubic f_;
  Cubic g_;
};

}  // namespace dlf
