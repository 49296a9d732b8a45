#include <algorithm>
#include <cmath>

#include "fusion/cpu/solver.h"

// What a rule does with probabilities: gates, measured weights, certainty, mixtures, the mask of implausible tokens.
namespace dlf {
namespace {

// Rounding may put it a little below 0.
double entropy_of(const BlockSum& sum) { return std::max(std::log(sum.weight) - sum.first / sum.weight, 0.0); }

}  // namespace

// Adds up the sums of a model over the vocabulary, without the tokens that `large` excludes.
BlockSum FusionSolver::sum_model(const float* logits, const float* large, BlockSum* sums) {
  const auto kernel = DLF_CPU_DISPATCH(sweep_model);
  for_blocks(
      1, [&](int, int64_t block, int64_t begin, int64_t end) { kernel({logits, large, begin, end, sums + block}); });
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
  const BlockSum total = sum_model(large, large, sums_.get());
  if (!(total.weight > 0.0) || std::isinf(total.peak)) {
    return true;
  }
  if (gate.kind == GateKind::top_prob) {
    return 1.0 / total.weight <= gate.threshold;
  }
  return entropy_of(total) >= gate.threshold;
}

// In nats.
double FusionSolver::entropy(const float* logits, const float* large, BlockSum* sums) {
  return entropy_of(sum_model(logits, large, sums));
}

// Scales the targets of a row's experts by how sure the large model is beside each: one that is surer moves less.
void FusionSolver::weigh_targets(int row) {
  Curve* curves = &curves_[row * experts_];
  BlockSum* scratch = sums(row * experts_);
  const double of_large = entropy(large_[row], large_[row], scratch);
  for (int t = 0; t < experts(row); ++t) {
    curves[t].entropy = entropy(inputs_[row].experts[t], large_[row], scratch);
    const double both = of_large + curves[t].entropy;
    const double scale = both > 0.0 ? std::min(2.0 * of_large / both, 1.0) : 1.0;
    curves[t].a *= scale;
    curves[t].b *= scale;
  }
}

// Finds the shares of experts' probabilities in the row's result. By certainty, the selected expert gets the difference
// of its certainty and that of the fused distribution, one over the perplexity of each, if it is the surer one.
void FusionSolver::choose_shares(int row) {
  Curve* curves = &curves_[row * experts_];
  for (int t = 0; t < experts(row); ++t) {
    curves[t].share = weight(row * experts_ + t).share();
  }
  if (!inputs_[row].rule->follows_certainty()) {
    return;
  }
  const double rest = 1.0 - inputs_[row].rule->mixed_share();
  const float* fused = results_[row].logits;
  const double certainty = std::exp(-entropy(fused, fused, sums(row * experts_)));
  for (int t = 0; t < experts(row); ++t) {
    if (curves[t].selected) {
      curves[t].share = std::max(rest, 0.0) * std::max(std::exp(-curves[t].entropy) - certainty, 0.0);
    }
  }
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
    if (input.gate != GateState::undecided) {
      result.open = input.gate == GateState::open;
    } else {
      result.open = !gate.exists() || (gate.needs_experts() ? disagrees(input) : is_open(gate, input.large));
    }
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
  active_.clear();
  for (const int row : active_rows_) {
    const bool scaled = inputs_[row].rule->large_weight != 1.0;
    large_[row] = scaled ? results_[row].logits : inputs_[row].large;
    if (scaled) {
      active_.push_back(row);
    }
  }
  const auto kernel = DLF_CPU_DISPATCH(sweep_scale);
  for_blocks(active_.size(), [&](int item, int64_t, int64_t begin, int64_t end) {
    const int row = active_[item];
    const auto factor = static_cast<float>(inputs_[row].rule->large_weight);
    kernel({inputs_[row].large, factor, begin, end, results_[row].logits});
  });
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
    if (!alive(row)) {
      continue;
    }
    choose_shares(row);
    const Curve* curves = &curves_[row * experts_];
    if (std::any_of(curves, curves + experts(row), [](const Curve& curve) { return curve.share > 0.0; })) {
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
    double rest = 1.0;
    for (int t = 0; t < experts(row); ++t) {
      if (curves[t].share > 0.0) {
        mixed[count] = input.experts[t];
        shifts[count++] = std::log(curves[t].share) - curves[t].expert_log_sum;
        rest -= curves[t].share;
      }
    }
    double both[2];
    kernel({input.large, mixed, shifts, count, std::log(std::max(rest, 0.0)) - curves[0].fused_log_sum,
            input.rule->large_weight, curves[0].zero.log_sum, begin, end, results_[row].logits, both});
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
    const double least = sum_model(large, large, sums(row * experts_)).peak + std::log(share);
    for_blocks(1, [&](int, int64_t, int64_t begin, int64_t end) {
      kernel({large, static_cast<float>(least), begin, end, results_[row].logits});
    });
    ++results_[row].sweeps;
  }
}

}  // namespace dlf
