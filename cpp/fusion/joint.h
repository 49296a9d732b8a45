#pragma once

namespace dlf {

// The joint weights: the distribution nearest P in KL(·‖P) that reaches every expert's moment, E[Δ_t] >= τ_t. Its
// convex dual is
//     minimise  D(α) = log E_P[exp(Σ α_tΔ_t)] − Σ α_tτ_t   over  0 <= α_t <= α_max,
// with gradient E[Δ_t] − τ_t and the covariance of the Δ_t as Hessian: Newton's method inside the box. A step that goes
// too far is shortened along its line, which reaches the minimum also where P̃ is all but certain and the Hessian
// vanishes.
class JointSearch {
 public:
  static constexpr int kMost = 16;  // experts

  void start(int count, double alpha_max, const double* alpha, const double* moments);

  // Takes D's parts at trial(): the cumulant, the means and the lower triangle of E[Δ_tΔ_s], all with Δ centred under
  // P. Returns false when the answer is known; otherwise trial() is the next point to evaluate.
  bool take(double cumulant, const double* means, const double* products);

  const double* trial() const { return trial_; }
  const double* answer() const { return alpha_; }

 private:
  bool newton_step();
  void shorten(double slope_at_trial);

  int count_ = 0;
  int taken_ = 0;
  double alpha_max_ = 0.0;
  double value_ = 0.0;
  double slope_ = 0.0;   // of D along move_, at alpha_
  double length_ = 0.0;  // of the trial, as a share of move_
  double alpha_[kMost];
  double move_[kMost] = {};
  double trial_[kMost];
  double target_[kMost];
  double gradient_[kMost];
  double hessian_[kMost][kMost];
};

}  // namespace dlf
