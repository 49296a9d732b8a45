#pragma once

#include "fusion/solver_math.h"

namespace dlf {

// How far the joint search goes. The sums that it is given are those of double or of float32 numbers.
struct JointPrecision {
  double tolerance = 1e-7;  // of α, as a share of α_max
  double ridge = 1e-9;      // of the Hessian: experts that say the same make it singular
  double gain = 1e-15;      // of D, as a share of it: the least that is worth another step

  DLF_HOST_DEVICE static JointPrecision of_float() { return {1e-5, 1e-6, 1e-9}; }
};

// The joint weights: the distribution nearest P in KL(·‖P) that reaches every expert's moment, E[Δ_t] >= τ_t. Its
// convex dual is
//     minimise  D(α) = log E_P[exp(Σ α_tΔ_t)] − Σ α_tτ_t   over  0 <= α_t <= α_max,t,
// with gradient E[Δ_t] − τ_t and the covariance of the Δ_t as Hessian: Newton's method inside the box. A step that goes
// too far is shortened along its line, which reaches the minimum also where P̃ is all but certain and the Hessian
// vanishes.
class JointSearch {
 public:
  static constexpr int kMost = 16;  // experts

  // An expert whose bound is 0 stays out.
  DLF_HOST_DEVICE void start(int count, const double* alpha_max, const double* alpha, const double* moments,
                             const JointPrecision& precision = {});

  // Takes D's parts at trial(): the cumulant, the means and the lower triangle of E[Δ_tΔ_s], all with Δ centred under
  // P. Returns false when the answer is known; otherwise trial() is the next point to evaluate.
  DLF_HOST_DEVICE bool take(double cumulant, const double* means, const double* products);

  DLF_HOST_DEVICE const double* trial() const { return trial_; }
  DLF_HOST_DEVICE const double* answer() const { return alpha_; }

 private:
  static constexpr int kEvaluations = 60;
  static constexpr int kRounds = 2000;

  DLF_HOST_DEVICE bool newton_step();
  DLF_HOST_DEVICE bool eliminate(double ridge);
  DLF_HOST_DEVICE void shorten(double slope_at_trial);

  JointPrecision precision_;
  int count_;
  int taken_;
  double largest_;  // of the bounds
  double value_;
  double slope_;   // of D along move_, at alpha_
  double length_;  // of the trial, as a share of move_
  double alpha_max_[kMost];
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
    largest_ = larger(largest_, alpha_max[t]);
    alpha_[t] = alpha[t];
    trial_[t] = alpha[t];
    target_[t] = moments[t];
    move_[t] = 0.0;
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
      hessian_[t][t] = larger(hessian_[t][t], 0.0);  // but for rounding
    }
    return ++taken_ < kEvaluations && newton_step();
  }
  shorten(slope);
  return ++taken_ < kEvaluations && -slope_ * length_ > precision_.gain * fabs(value_);
}

// Where coordinate descent starts: at the minimum over those weights that stay inside the box, found by elimination.
// False, and move_ undefined, where the Hessian is too near to a singular one for that.
DLF_HOST_DEVICE inline bool JointSearch::eliminate(double ridge) {
  constexpr double kLeastPivot = 1e-3;  // as a share of its diagonal
  double scaled[kMost][kMost];          // L_ts D_s
  double per_pivot[kMost];
  unsigned held = 0;  // at 0 or at their bound
  for (int t = 0; t < count_; ++t) {
    move_[t] = 0.0;
    held |= alpha_max_[t] > 0.0 ? 0U : 1U << t;
  }
  for (;;) {
    // H = LDLᵀ over the others.
    for (int t = 0; t < count_; ++t) {
      if ((held >> t & 1U) != 0) {
        continue;
      }
      double pivot = hessian_[t][t] + ridge;
      double rest = -gradient_[t];
      for (int s = 0; s < count_; ++s) {
        rest -= (held >> s & 1U) != 0 ? hessian_[t][s] * move_[s] : 0.0;
      }
      for (int s = 0; s < t; ++s) {
        if ((held >> s & 1U) != 0) {
          continue;
        }
        double product = hessian_[t][s];
        for (int r = 0; r < s; ++r) {
          product -= (held >> r & 1U) != 0 ? 0.0 : scaled[t][r] * scaled[s][r] * per_pivot[r];
        }
        scaled[t][s] = product;
        pivot -= product * product * per_pivot[s];
        rest -= product * move_[s];
      }
      if (!(pivot > kLeastPivot * hessian_[t][t])) {
        return false;
      }
      per_pivot[t] = 1.0 / pivot;
      move_[t] = rest * per_pivot[t];
    }
    unsigned outside = 0;
    for (int t = count_ - 1; t >= 0; --t) {
      if ((held >> t & 1U) != 0) {
        continue;
      }
      for (int s = t + 1; s < count_; ++s) {
        move_[t] -= (held >> s & 1U) != 0 ? 0.0 : scaled[s][t] * per_pivot[t] * move_[s];
      }
      const double place = alpha_[t] + move_[t];
      outside |= place >= 0.0 && place <= alpha_max_[t] ? 0U : 1U << t;
    }
    if (outside == 0) {
      return true;
    }
    for (int t = 0; t < count_; ++t) {
      if ((outside >> t & 1U) != 0) {
        move_[t] = clamp(alpha_[t] + move_[t], 0.0, alpha_max_[t]) - alpha_[t];
      }
    }
    held |= outside;
  }
}

// The quadratic's minimum in the box, by coordinate descent: it keeps to the box by itself and leaves alone what a
// singular Hessian doesn't see. False where the answer is known.
DLF_HOST_DEVICE inline bool JointSearch::newton_step() {
  double scale = 0.0;
  for (int t = 0; t < count_; ++t) {
    if (alpha_max_[t] > 0.0) {
      scale = larger(scale, larger(hessian_[t][t], fabs(gradient_[t]) / alpha_max_[t]));
    }
  }
  if (!(scale > 0.0)) {
    return false;
  }
  const double ridge = precision_.ridge * scale;
  double slope[kMost];  // of the quadratic at move_
  double pace[kMost];
  const bool started = eliminate(ridge);
  for (int t = 0; t < count_; ++t) {
    move_[t] = started ? move_[t] : 0.0;
    pace[t] = 1.0 / (hessian_[t][t] + ridge);
  }
  for (int t = 0; t < count_; ++t) {
    slope[t] = gradient_[t] + ridge * move_[t];
    for (int s = 0; s < count_; ++s) {
      slope[t] += hessian_[t][s] * move_[s];
    }
  }
  for (int round = 0; round < kRounds; ++round) {
    double change = 0.0;
    for (int t = 0; t < count_; ++t) {
      const double place = clamp(alpha_[t] + move_[t] - slope[t] * pace[t], 0.0, alpha_max_[t]);
      const double shift = place - alpha_[t] - move_[t];
      if (shift == 0.0) {
        continue;
      }
      move_[t] += shift;
      for (int s = 0; s < count_; ++s) {
        slope[s] += hessian_[s][t] * shift;
      }
      slope[t] += ridge * shift;
      change = larger(change, fabs(shift));
    }
    if (change <= 1e-3 * precision_.tolerance * largest_) {
      break;
    }
  }
  slope_ = 0.0;
  double moved = 0.0;
  for (int t = 0; t < count_; ++t) {
    slope_ += gradient_[t] * move_[t];
    trial_[t] = clamp(alpha_[t] + move_[t], 0.0, alpha_max_[t]);
    moved = larger(moved, fabs(move_[t]));
  }
  length_ = 1.0;
  return moved > precision_.tolerance * largest_ && -slope_ > precision_.gain * fabs(value_);
}

// To where the slope vanishes if it changes evenly from the start of the line to the trial.
DLF_HOST_DEVICE inline void JointSearch::shorten(double slope_at_trial) {
  length_ *= clamp(slope_ / (slope_ - slope_at_trial), 0.1, 0.6);
  for (int t = 0; t < count_; ++t) {
    trial_[t] = clamp(alpha_[t] + length_ * move_[t], 0.0, alpha_max_[t]);
  }
}

}  // namespace dlf
