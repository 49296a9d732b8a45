#include "fusion/joint.h"

#include <algorithm>
#include <cmath>

namespace dlf {
namespace {

constexpr int kEvaluations = 60;
constexpr double kTolerance = 1e-7;  // of α
constexpr double kRidge = 1e-9;      // experts that say the same make the Hessian singular

}  // namespace

void JointSearch::start(int count, double alpha_max, const double* alpha, const double* moments) {
  count_ = count;
  taken_ = 0;
  alpha_max_ = alpha_max;
  std::copy_n(alpha, count, alpha_);
  std::copy_n(alpha, count, trial_);
  std::copy_n(moments, count, target_);
}

bool JointSearch::take(double cumulant, const double* means, const double* products) {
  double value = cumulant;
  double slope = 0.0;
  for (int t = 0; t < count_; ++t) {
    value -= trial_[t] * target_[t];
    slope += (means[t] - target_[t]) * move_[t];
  }
  // D is convex: where it still falls along the line, it is below its value at the start of the line.
  if (taken_ == 0 || slope <= 0.0 || value <= value_ + 1e-4 * length_ * slope_) {
    value_ = value;
    std::copy_n(trial_, count_, alpha_);
    for (int t = 0; t < count_; ++t) {
      gradient_[t] = means[t] - target_[t];
      for (int s = 0; s <= t; ++s) {
        hessian_[t][s] = *products++ - means[t] * means[s];
        hessian_[s][t] = hessian_[t][s];
      }
    }
    return ++taken_ < kEvaluations && newton_step();
  }
  shorten(slope);
  return ++taken_ < kEvaluations && -slope_ * length_ > 1e-15 * std::abs(value_);
}

// The quadratic's minimum in the box, by coordinate descent: it needs no factorisation, keeps to the box by itself and
// leaves alone what a singular Hessian doesn't see. False where the answer is known.
bool JointSearch::newton_step() {
  double scale = 0.0;
  for (int t = 0; t < count_; ++t) {
    scale = std::max({scale, hessian_[t][t], std::abs(gradient_[t]) / alpha_max_});
  }
  if (!(scale > 0.0)) {
    return false;
  }
  const double ridge = kRidge * scale;
  double slope[kMost];  // of the quadratic at move_
  std::fill_n(move_, count_, 0.0);
  std::copy_n(gradient_, count_, slope);
  for (int round = 0; round < 2000; ++round) {
    double change = 0.0;
    for (int t = 0; t < count_; ++t) {
      const double place = std::clamp(alpha_[t] + move_[t] - slope[t] / (hessian_[t][t] + ridge), 0.0, alpha_max_);
      const double shift = place - alpha_[t] - move_[t];
      if (shift == 0.0) {
        continue;
      }
      move_[t] += shift;
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
  slope_ = 0.0;
  double moved = 0.0;
  for (int t = 0; t < count_; ++t) {
    slope_ += gradient_[t] * move_[t];
    trial_[t] = std::clamp(alpha_[t] + move_[t], 0.0, alpha_max_);
    moved = std::max(moved, std::abs(move_[t]));
  }
  length_ = 1.0;
  return moved > kTolerance * alpha_max_ && -slope_ > 1e-15 * std::abs(value_);
}

// To where the slope vanishes if it changes evenly from the start of the line to the trial.
void JointSearch::shorten(double slope_at_trial) {
  length_ *= std::clamp(slope_ / (slope_ - slope_at_trial), 0.1, 0.6);
  for (int t = 0; t < count_; ++t) {
    trial_[t] = std::clamp(alpha_[t] + length_ * move_[t], 0.0, alpha_max_);
  }
}

}  // namespace dlf
