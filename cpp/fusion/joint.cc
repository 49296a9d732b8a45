#include "fusion/joint.h"

#include <algorithm>
#include <cmath>

namespace dlf {
namespace {

constexpr int kEvaluations = 40;
constexpr double kTolerance = 1e-7;  // of α

}  // namespace

void JointSearch::start(int count, double alpha_max, const double* alpha, const double* moments) {
  count_ = count;
  taken_ = 0;
  alpha_max_ = alpha_max;
  damping_ = 1e-9;
  std::copy_n(alpha, count, alpha_);
  std::copy_n(alpha, count, trial_);
  std::copy_n(moments, count, target_);
}

bool JointSearch::take(double cumulant, const double* means, const double* products) {
  double value = cumulant;
  for (int t = 0; t < count_; ++t) {
    value -= trial_[t] * target_[t];
  }
  const bool better = taken_ == 0 || value <= value_ - 1e-4 * predicted_ + 1e-15 * std::abs(value_);
  if (better) {
    value_ = value;
    std::copy_n(trial_, count_, alpha_);
    for (int t = 0; t < count_; ++t) {
      gradient_[t] = means[t] - target_[t];
      for (int s = 0; s <= t; ++s) {
        hessian_[t][s] = *products++ - means[t] * means[s];
        hessian_[s][t] = hessian_[t][s];
      }
    }
    damping_ = taken_ == 0 ? damping_ : std::max(0.1 * damping_, 1e-12);
  } else {
    damping_ = std::max(10.0 * damping_, 1e-3);
  }
  if (++taken_ >= kEvaluations) {
    return false;
  }
  step();
  double moved = 0.0;
  for (int t = 0; t < count_; ++t) {
    moved = std::max(moved, std::abs(trial_[t] - alpha_[t]));
  }
  return moved > kTolerance * alpha_max_;
}

// The damped quadratic's minimum in the box, by coordinate descent: it needs no factorisation, keeps to the box by
// itself and leaves alone what a singular Hessian doesn't see.
void JointSearch::step() {
  double trace = 0.0;
  for (int t = 0; t < count_; ++t) {
    trace = std::max(trace, hessian_[t][t]);
  }
  double move[kMost] = {};
  double slope[kMost];  // of the quadratic at `move`
  std::copy_n(gradient_, count_, slope);
  const double ridge = damping_ * trace;
  for (int round = 0; round < 2000; ++round) {
    double change = 0.0;
    for (int t = 0; t < count_; ++t) {
      const double bend = hessian_[t][t] + ridge;
      if (!(bend > 0.0)) {
        continue;
      }
      const double place = std::clamp(alpha_[t] + move[t] - slope[t] / bend, 0.0, alpha_max_);
      const double shift = place - alpha_[t] - move[t];
      if (shift == 0.0) {
        continue;
      }
      move[t] += shift;
      for (int s = 0; s < count_; ++s) {
        slope[s] += hessian_[s][t] * shift;
      }
      slope[t] += ridge * shift;
      change = std::max(change, std::abs(shift));
    }
    if (change <= 1e-10 * alpha_max_) {
      break;
    }
  }
  predicted_ = 0.0;
  for (int t = 0; t < count_; ++t) {
    predicted_ -= 0.5 * move[t] * (gradient_[t] + slope[t]);
    trial_[t] = std::clamp(alpha_[t] + move[t], 0.0, alpha_max_);
  }
}

}  // namespace dlf
