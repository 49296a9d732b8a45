#pragma once

#include "fusion/solver_math.h"

namespace dlf {

// Precision of the joint search: by default for sums of doubles, of_float() for sums of float32 numbers.
struct JointPrecision {
  double tolerance = 1e-7;  // of α, as a share of α_max
  double ridge = 1e-9;      // added to the Hessian, as a share of it: experts that agree make it singular
  double gain = 1e-15;      // least gain in D that is worth another step, as a share of D

  DLF_HOST_DEVICE static JointPrecision of_float() { return {1e-5, 1e-6, 1e-9}; }
};

// The joint weights: the distribution nearest P in KL(·‖P) that reaches every expert's moment, E[Δ_t] >= τ_t. Its
// convex dual is
//     minimise  D(α) = log E_P[exp(Σ α_tΔ_t)] − Σ α_tτ_t   over  0 <= α_t <= α_max,t,
// with gradient E[Δ_t] − τ_t and the covariance of the Δ_t as Hessian: Newton's method inside the box. A step that goes
// too far is shortened along its line, so that the minimum is reached also where P̃ is nearly certain and the Hessian
// vanishes.
class JointSearch {
 public:
  static constexpr int kMost = 16;  // experts

  // Begins a search at `alpha`. An expert whose alpha_max is 0 stays out.
  DLF_HOST_DEVICE void start(int count, const double* alpha_max, const double* alpha, const double* moments,
                             const JointPrecision& precision = {});

  // Takes D's parts at trial(): the cumulant, the means and the lower triangle of E[Δ_tΔ_s], all with Δ centred under
  // P. Returns false when the answer is known; otherwise trial() is the next point to evaluate.
  DLF_HOST_DEVICE bool take(double cumulant, const double* means, const double* products);

  DLF_HOST_DEVICE const double* trial() const { return trial_; }
  DLF_HOST_DEVICE const double* answer() const { return alpha_; }

 private:
  static constexpr int kEvaluations = 60;
  static constexpr int kRounds = 100;
  static constexpr int kFew = 4;  // most experts for which a step keeps its numbers in registers

  template <int kSize>
  DLF_HOST_DEVICE bool newton_step();
  template <int kSize>
  DLF_HOST_DEVICE void eliminate(double ridge, unsigned free, const double* slope, double* step) const;
  DLF_HOST_DEVICE void shorten(double slope_at_trial);

  JointPrecision precision_;
  int count_;
  int taken_;
  double largest_;  // of the bounds
  double value_;
  double slope_;   // of D along move_, at alpha_
  double length_;  // of the trial, as a share of move_
  double alpha_max_[kMost];
  double per_bound_[kMost];  // 1 / alpha_max_, or 0 if that is 0
  double alpha_[kMost];
  double move_[kMost];
  double trial_[kMost];
  double target_[kMost];
  double gradient_[kMost];
  double hessian_[kMost][kMost];
};

DLF_HOST_DEVICE inline void JointSearch::start(int count, const double* alpha_max, const double* alpha,
                                               const double* moments, const JointPrecision& precision) {
  precision_ = precision;
  count_ = count;
  taken_ = 0;
  largest_ = 0.0;
  value_ = 0.0;
  slope_ = 0.0;
  length_ = 0.0;
  for (int t = 0; t < count; ++t) {
    alpha_max_[t] = alpha_max[t];
    per_bound_[t] = alpha_max[t] > 0.0 ? 1.0 / alpha_max[t] : 0.0;
    largest_ = larger(largest_, alpha_max[t]);
    alpha_[t] = alpha[t];
    trial_[t] = alpha[t];
    target_[t] = moments[t];
    move_[t] = 0.0;
  }
  for (int t = count; t < kFew; ++t) {  // fill up to kFew with experts at 0
    alpha_max_[t] = 0.0;
    per_bound_[t] = 0.0;
    alpha_[t] = 0.0;
    gradient_[t] = 0.0;
    for (int s = 0; s < kFew; ++s) {
      hessian_[t][s] = 0.0;
      hessian_[s][t] = 0.0;
    }
  }
}

DLF_HOST_DEVICE inline bool JointSearch::take(double cumulant, const double* means, const double* products) {
  double value = cumulant;
  double slope = 0.0;
  for (int t = 0; t < count_; ++t) {
    value -= trial_[t] * target_[t];
    slope += (means[t] - target_[t]) * move_[t];
  }
  // D is convex: where it still falls along the line, it is below its value at the start of the line.
  if (taken_ == 0 || slope <= 0.0 || value <= value_ + 1e-4 * length_ * slope_) {
    value_ = value;
    for (int t = 0; t < count_; ++t) {
      alpha_[t] = trial_[t];
      gradient_[t] = means[t] - target_[t];
      for (int s = 0; s <= t; ++s) {
        hessian_[t][s] = *products++ - means[t] * means[s];
        hessian_[s][t] = hessian_[t][s];
      }
      hessian_[t][t] = larger(hessian_[t][t], 0.0);  // rounding may make it negative
    }
    return ++taken_ < kEvaluations && (count_ <= kFew ? newton_step<kFew>() : newton_step<kMost>());
  }
  shorten(slope);
  return ++taken_ < kEvaluations && -slope_ * length_ > precision_.gain * fabs(value_);
}

// Computes the step to the quadratic's minimum over the `free` weights from where its slope is `slope`; the other
// weights stay.
template <int kSize>
DLF_HOST_DEVICE inline void JointSearch::eliminate(double ridge, unsigned free, const double* slope,
                                                   double* step) const {
  const int count = kSize == kFew ? kFew : count_;
  double scaled[kSize][kSize];  // L_ts D_s of H = LDLᵀ
  double lower[kSize][kSize];   // L_ts
  double per_pivot[kSize];
  for (int t = 0; t < count; ++t) {
    double pivot = hessian_[t][t] + ridge;
    double rest = -slope[t];
    for (int s = 0; s < t; ++s) {
      double product = hessian_[t][s];
      for (int r = 0; r < s; ++r) {
        product -= scaled[t][r] * lower[s][r];
      }
      const bool both = (free >> t & free >> s & 1U) != 0;
      scaled[t][s] = both ? product : 0.0;
      lower[t][s] = scaled[t][s] * per_pivot[s];
      pivot -= scaled[t][s] * lower[t][s];
      rest -= scaled[t][s] * step[s];
    }
    per_pivot[t] = 1.0 / larger(pivot, ridge);  // less only by rounding
    step[t] = (free >> t & 1U) != 0 ? rest * per_pivot[t] : 0.0;
  }
  for (int t = count - 1; t >= 0; --t) {
    for (int s = t + 1; s < count; ++s) {
      step[t] -= lower[s][t] * step[s];
    }
  }
}

// Moves to the quadratic's minimum in the box: goes to the minimum over the free weights, or to the first bound on the
// way, which then holds one more weight; at the minimum, frees the weight that is pulled most into the box. The
// quadratic falls in every round, so no set of free weights occurs twice. Returns false when the answer is known.
template <int kSize>
DLF_HOST_DEVICE inline bool JointSearch::newton_step() {
  const int count = kSize == kFew ? kFew : count_;
  double scale = 0.0;
  for (int t = 0; t < count; ++t) {
    if (alpha_max_[t] > 0.0) {
      scale = larger(scale, larger(hessian_[t][t], fabs(gradient_[t]) * per_bound_[t]));
    }
  }
  if (!(scale > 0.0)) {
    return false;
  }
  const double ridge = precision_.ridge * scale;
  const double nothing = 1e-3 * precision_.tolerance * largest_;
  double low[kSize];
  double high[kSize];
  double move[kSize];
  double slope[kSize];  // of the quadratic at `move`
  unsigned free = 0;
  for (int t = 0; t < count; ++t) {
    low[t] = -alpha_[t];
    high[t] = alpha_max_[t] - alpha_[t];
    move[t] = 0.0;
    slope[t] = gradient_[t];
    const bool has_room = slope[t] < 0.0 ? high[t] > 0.0 : low[t] < 0.0;
    free |= has_room && alpha_max_[t] > 0.0 ? 1U << t : 0U;
  }
  for (int round = 0; round < kRounds; ++round) {
    double step[kSize];
    eliminate<kSize>(ridge, free, slope, step);
    unsigned outside = 0;
    for (int t = 0; t < count; ++t) {
      const double place = move[t] + step[t];
      outside |= (free >> t & 1U) != 0 && !(place >= low[t] && place <= high[t]) ? 1U << t : 0U;
    }
    double share = 1.0;
    unsigned first = 0;
    for (int t = 0; t < count && outside != 0; ++t) {
      if ((outside >> t & 1U) != 0) {
        const double room = ((step[t] < 0.0 ? low[t] : high[t]) - move[t]) / step[t];
        share = first == 0 || room < share ? room : share;
        first = share == room ? 1U << t : first;
      }
    }
    for (int t = 0; t < count; ++t) {
      const double bound = step[t] < 0.0 ? low[t] : high[t];
      move[t] = (first >> t & 1U) != 0 ? bound : move[t] + share * step[t];
    }
    free &= ~first;
    double most = 0.0;
    unsigned back = 0;
    for (int t = 0; t < count; ++t) {
      slope[t] = gradient_[t] + ridge * move[t];
      for (int s = 0; s < count; ++s) {
        slope[t] += hessian_[t][s] * move[s];
      }
      const double pull = move[t] > low[t] ? slope[t] : -slope[t];
      if ((free >> t & 1U) == 0 && alpha_max_[t] > 0.0 && pull > most && pull > nothing * (hessian_[t][t] + ridge)) {
        most = pull;
        back = 1U << t;
      }
    }
    if (first == 0 && back == 0) {
      break;
    }
    free |= first == 0 ? back : 0U;
  }
  slope_ = 0.0;
  double moved = 0.0;
  for (int t = 0; t < count; ++t) {
    move_[t] = move[t];
    slope_ += gradient_[t] * move[t];
    trial_[t] = clamp(alpha_[t] + move[t], 0.0, alpha_max_[t]);
    moved = larger(moved, fabs(move[t]));
  }
  length_ = 1.0;
  return moved > precision_.tolerance * largest_ && -slope_ > precision_.gain * fabs(value_);
}

// Moves the trial back to where the slope vanishes if it changes linearly from the start of the line to the trial.
DLF_HOST_DEVICE inline void JointSearch::shorten(double slope_at_trial) {
  length_ *= clamp(slope_ / (slope_ - slope_at_trial), 0.1, 0.6);
  for (int t = 0; t < count_; ++t) {
    trial_[t] = clamp(alpha_[t] + length_ * move_[t], 0.0, alpha_max_[t]);
  }
}

}  // namespace dlf
