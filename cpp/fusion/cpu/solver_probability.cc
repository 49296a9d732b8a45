#include <algorithm>
#include <cmath>

#include "fusion/cpu/solver.h"

// What a rule does with probabilities: gates, measured weights, mixtures, and the mask of implausible tokens.
namespace dlf {

// Sums of the row's large model over the vocabulary: its peak, its normaliser, and the mean of log p less the peak's.
BlockSum FusionSolver::sum_large(const float* large, BlockSum* sums) {
  const auto kernel = DLF_CPU_DISPATCH(sweep_large);
  for_blocks(1, [&](int, int64_t block, int64_t begin, int64_t end) { kernel({large, begin, end, sums + block}); });
  BlockSum total = sums[0];
  for (int64_t block = 1; block < blocks_; ++block) {
    total.peak = std::max(total.peak, sums[block].peak);
  }
  total.weight = total.first = 0.0;
  for (int64_t block = 0; block < blocks_; ++block) {
    const BlockSum& part = sums[block];
    if (part.weight > 0.0) {
      const double down = part.peak - total.peak;
      total.weight += std::exp(down) * part.weight;
      total.first += std::exp(down) * (part.first + down * part.weight);
    }
  }
  return total;
}

// A large model with NaN has an open gate, so that the row is solved and the fault is found.
bool FusionSolver::is_open(const Gate& gate, const float* large) {
  const BlockSum total = sum_large(large, sums_.get());
  if (!(total.weight > 0.0) || std::isinf(total.peak)) {
    return true;
  }
  if (gate.kind == GateKind::top_prob) {
    return 1.0 / total.weight <= gate.threshold;
  }
  return std::log(total.weight) - total.first / total.weight >= gate.threshold;
}

// Whether some expert's most probable token is not the large model's.
bool FusionSolver::disagrees(const FusionInput& input) const {
  const auto top = [&](const float* logits) { return std::max_element(logits, logits + vocab_) - logits; };
  const int64_t own = top(input.large);
  return std::any_of(input.experts, input.experts + input.count,
                     [&](const float* expert) { return top(expert) != own; });
}

// Leaves the large model's logits to the rows whose gate is closed.
void FusionSolver::close_gates() {
  for (int row = 0; row < static_cast<int>(inputs_.size()); ++row) {
    const FusionInput& input = inputs_[row];
    const Gate& gate = input.rule->gate;
    FusionResult& result = results_[row];
    result.open = !gate.exists() || (gate.needs_experts() ? disagrees(input) : is_open(gate, input.large));
    if (result.open) {
      continue;
    }
    std::copy_n(input.large, vocab_, result.logits);
    for (double* numbers : {result.alpha, result.target_f, result.target_g}) {
      std::fill_n(numbers, input.count, 0.0);
    }
    result.f = result.g = 0.0;
  }
}

// Replaces the large logits of rows in which they have a weight by a copy, kept where the fused logits will go.
void FusionSolver::scale_rows() {
  const auto kernel = DLF_CPU_DISPATCH(sweep_scale);
  for_blocks(active_rows_.size(), [&](int item, int64_t, int64_t begin, int64_t end) {
    const int row = active_rows_[item];
    const auto factor = static_cast<float>(inputs_[row].rule->large_weight);
    if (factor != 1.0F) {
      kernel({inputs_[row].large, factor, begin, end, results_[row].logits});
    }
  });
  for (const int row : active_rows_) {
    large_[row] = inputs_[row].rule->large_weight == 1.0 ? inputs_[row].large : results_[row].logits;
  }
}

// Measures the weights of the rows whose rule says so: the Jensen-Shannon divergence of each expert and its base.
void FusionSolver::measure() {
  active_.clear();
  for (int row = 0; row < static_cast<int>(inputs_.size()); ++row) {
    for (int t = 0; t < experts(row) && alive(row) && inputs_[row].rule->is_measured(); ++t) {
      if (weight(row * experts_ + t).solved()) {
        active_.push_back(row * experts_ + t);
      }
    }
  }
  const auto kernel = DLF_CPU_DISPATCH(sweep_divergence);
  for_blocks(active_.size(), [&](int item, int64_t block, int64_t begin, int64_t end) {
    const int index = active_[item];
    const Curve& curve = curves_[index];
    const FusionInput& input = inputs_[index / experts_];
    kernel({large_[index / experts_], input.experts[index % experts_], input.bases[index % experts_],
            curve.expert_log_sum, curve.base_log_sum, begin, end, &sums(index)[block].weight});
  });
  for (const int index : active_) {
    double total = 0.0;
    for (int64_t block = 0; block < blocks_; ++block) {
      total += sums(index)[block].weight;
    }
    const double divergence = std::max(std::log(2.0) + 0.5 * total, 0.0);
    curves_[index].given = std::min(divergence, weight(index).alpha_max);
    ++curves_[index].sweeps;
  }
}

// Mixes the probabilities of experts into the fused ones.
void FusionSolver::mix() {
  active_rows_.clear();
  for (int row = 0; row < static_cast<int>(inputs_.size()); ++row) {
    if (alive(row) && inputs_[row].rule->mixed_share() > 0.0) {
      active_rows_.push_back(row);
    }
  }
  const auto kernel = DLF_CPU_DISPATCH(sweep_mix);
  for_blocks(active_rows_.size(), [&](int item, int64_t block, int64_t begin, int64_t end) {
    const int row = active_rows_[item];
    const FusionInput& input = inputs_[row];
    const Curve* curves = &curves_[row * experts_];
    const float* mixed[kMaxExperts];
    double shifts[kMaxExperts];
    int count = 0;
    for (int t = 0; t < experts(row); ++t) {
      const ExpertWeight given = weight(row * experts_ + t);
      if (given.share() > 0.0) {
        mixed[count] = input.experts[t];
        shifts[count++] = std::log(given.share()) - curves[t].expert_log_sum;
      }
    }
    const double rest = std::log(std::max(1.0 - input.rule->mixed_share(), 0.0));
    double both[2];
    kernel({input.large, mixed, shifts, count, rest - curves[0].fused_log_sum, input.rule->large_weight,
            curves[0].zero.log_sum, begin, end, results_[row].logits, both});
    BlockSum& sum = sums(row * experts_)[block];
    sum.first = both[0];
    sum.second = both[1];
  });
  for (const int row : active_rows_) {
    FusionResult& result = results_[row];
    result.f = result.g = 0.0;
    for (int64_t block = 0; block < blocks_; ++block) {
      result.f += sums(row * experts_)[block].first;
      result.g += sums(row * experts_)[block].second;
    }
    result.f = std::max(result.f, 0.0);
    result.g = std::max(result.g, 0.0);
    ++result.sweeps;
    for (int t = 0; t < experts(row); ++t) {
      const ExpertWeight given = weight(row * experts_ + t);
      result.alpha[t] = given.mixed ? given.share() : result.alpha[t];
    }
  }
}

// Excludes the tokens that the large model alone finds implausible.
void FusionSolver::mask() {
  const auto kernel = DLF_CPU_DISPATCH(sweep_mask);
  for (int row = 0; row < static_cast<int>(inputs_.size()); ++row) {
    const double share = inputs_[row].rule->plausibility;
    if (!alive(row) || share == 0.0) {
      continue;
    }
    const float* large = inputs_[row].large;
    const double least = sum_large(large, sums(row * experts_)).peak + std::log(share);
    for_blocks(1, [&](int, int64_t, int64_t begin, int64_t end) {
      kernel({large, static_cast<float>(least), begin, end, results_[row].logits});
    });
    ++results_[row].sweeps;
  }
}

}  // namespace dlf
