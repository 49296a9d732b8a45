#include <algorithm>
#include <cmath>

#include "fusion/cpu/solver.h"

// `joint`: solves the weights of all experts together, by Newton steps that cost one sweep each.
namespace dlf {

void FusionSolver::solve_joint() {
  active_rows_.clear();
  for (int row = 0; row < static_cast<int>(inputs_.size()); ++row) {
    if (!alive(row) || !inputs_[row].rule->is_joint() || solved(row) < 2) {
      continue;
    }
    // Experts with given weights have a bound of 0 here, which keeps them out of the search.
    double moments[kMaxExperts] = {};
    double start[kMaxExperts] = {};
    double bounds[kMaxExperts] = {};
    for (int t = 0; t < experts(row); ++t) {
      const int curve = row * experts_ + t;
      if (curves_[curve].solved) {
        moments[t] = curves_[curve].search.answer().mean;
        start[t] = results_[row].alpha[t];
        bounds[t] = weight(curve).alpha_max;
      }
    }
    joints_[row].start(experts(row), bounds, start, moments);
    active_rows_.push_back(row);
  }
  const auto kernel = DLF_CPU_DISPATCH(sweep_joint);
  while (!active_rows_.empty()) {
    for_blocks(active_rows_.size(), [&](int item, int64_t block, int64_t begin, int64_t end) {
      const int row = active_rows_[item];
      const FusionInput& input = inputs_[row];
      kernel({large_[row], input.experts, input.bases, joints_[row].trial(), &centres_[row * experts_], experts(row),
              begin, end, &joint_sums_[(row * blocks_ + block) * joint_sum_size_]});
    });
    std::erase_if(active_rows_, [&](int row) {
      ++results_[row].sweeps;
      const bool known = !take_joint(row);
      for (int t = 0; known && t < experts(row); ++t) {
        double& alpha = results_[row].alpha[t];
        alpha = curves_[row * experts_ + t].solved ? joints_[row].answer()[t] : alpha;
      }
      return known;
    });
  }
}

// Merges the blocks' sums, moves them to Δ centred under P, and hands them to the row's search.
bool FusionSolver::take_joint(int row) {
  const double* sums = &joint_sums_[row * blocks_ * joint_sum_size_];
  constexpr int kMost = kMaxExperts + kMaxExperts * (kMaxExperts + 1) / 2;
  double totals[1 + kMost] = {};
  const int size = joint_sums(experts(row));
  double peak = sums[0];
  for (int64_t block = 1; block < blocks_; ++block) {
    peak = std::max(peak, sums[block * joint_sum_size_]);
  }
  for (int64_t block = 0; block < blocks_; ++block) {
    const double* part = sums + block * joint_sum_size_;
    if (part[1] > 0.0) {
      const double scale = std::exp(part[0] - peak);
      for (int k = 0; k + 1 < size; ++k) {
        totals[k] += scale * part[k + 1];
      }
    }
  }
  double cumulant = peak + std::log(totals[0]) - curves_[row * experts_].zero.log_sum;
  double means[kMaxExperts];
  double products[kMost];
  const int count = experts(row);
  const double* raw = totals + 1 + count;
  int pair = 0;
  for (int t = 0; t < count; ++t) {
    const double shift = curves_[row * experts_ + t].zero.mean;
    cumulant -= joints_[row].trial()[t] * shift;
    means[t] = totals[1 + t] / totals[0] - shift;
    for (int s = 0; s <= t; ++s, ++pair) {
      const double other = curves_[row * experts_ + s].zero.mean;
      // E[(Δ_t − x)(Δ_s − y)] = E[Δ_tΔ_s] − x·E[Δ_s − y] − y·E[Δ_t − x] − xy
      products[pair] = raw[pair] / totals[0] - shift * means[s] - other * means[t] - shift * other;
    }
  }
  return joints_[row].take(cumulant, means, products);
}

}  // namespace dlf
