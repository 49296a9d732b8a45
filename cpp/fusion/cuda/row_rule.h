#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <span>

#include "fusion/rule.h"

namespace dlf::cuda {

// The kernels that work on rows. The rule of a row alone chooses its kernels, so that other rows change no bit of it.
enum SolverKernel : uint32_t {
  kSearchKernel = 1,
  kJointKernel = 2,    // in place of the search kernel, if there are several experts
  kPrepareKernel = 4,  // before: gates that read experts, a coefficient of the large model, measured weights, scales of
                       // targets
  kMixKernel = 8,      // after: mixed probabilities, masks
  kGateKernel = 16,    // at first: gates that read the large model's logits alone
};

// A row's rule as the kernels read it: numbers in device memory, so that one launch or graph serves any rules.
struct RowRule {
  uint32_t chosen;     // bit t: expert t is fused, else its logits are not read
  uint32_t given;      // bit t: its weight is alpha[t], or measured
  uint32_t measured;   // bit t: the prepare kernel measures its weight
  uint32_t mixed;      // bit t: a share of its probabilities is mixed in; it is given the weight 0
  uint32_t weighed;    // bit t: its targets are scaled, and it is mixed in if selected, by certainty
  uint32_t kernels;    // SolverKernels
  int32_t meets_mean;  // a bool, like the next two
  int32_t on_grid;
  int32_t large_in_place;  // the prepare kernel has put the large model's logits where the fused ones will go
  int32_t gate;            // a GateKind
  float gate_threshold;
  float large_weight;
  float plausibility;
  float f_weight;
  float g_weight;
  float rest;  // the share of probabilities that is not mixed in
  float alpha[kMaxExperts];
  float alpha_max[kMaxExperts];  // of the weights that are solved or measured
  float mix[kMaxExperts];        // the shares
};

// Rule of a row that fuses `experts`, which are some of `all` experts. Without experts the row is only copied.
inline RowRule row_rule(const Rule& rule, std::span<const int> experts, int all) {
  RowRule row = {};
  row.kernels = rule.is_joint() && all > 1 ? kJointKernel : kSearchKernel;
  row.meets_mean = rule.meets_mean() ? 1 : 0;
  row.on_grid = rule.on_grid() ? 1 : 0;
  row.f_weight = static_cast<float>(rule.matching().f_weight);
  row.g_weight = static_cast<float>(rule.matching().g_weight);
  row.gate_threshold = static_cast<float>(rule.gate.threshold);
  row.large_weight = static_cast<float>(rule.large_weight);
  row.plausibility = static_cast<float>(rule.plausibility);
  row.rest = static_cast<float>(std::max(1.0 - rule.mixed_share(), 0.0));
  if (experts.empty()) {
    return row;
  }
  row.gate = static_cast<int32_t>(rule.gate.kind);
  for (size_t i = 0; i < experts.size(); ++i) {
    const int t = experts[i];
    const ExpertWeight weight = rule.weight(i);
    const uint32_t bit = 1U << t;
    const auto given = static_cast<float>(weight.given.value_or(0.0));
    row.chosen |= bit;
    row.measured |= weight.solved() && rule.is_measured() ? bit : 0U;
    row.weighed |= weight.solved() && rule.follows_certainty() ? bit : 0U;
    row.given |= weight.solved() ? 0U : bit;
    row.mixed |= weight.mixed && given > 0.0F ? bit : 0U;
    row.alpha[t] = weight.mixed ? 0.0F : given;
    row.mix[t] = weight.mixed ? given : 0.0F;
    row.alpha_max[t] = static_cast<float>(weight.alpha_max);
  }
  row.given |= row.measured;
  row.large_in_place = rule.large_weight != 1.0 || (row.measured | row.weighed) != 0 ? 1 : 0;
  row.kernels |= rule.gate.reads_large_alone() ? kGateKernel : 0U;
  row.kernels |= rule.gate.needs_experts() || row.large_in_place != 0 ? kPrepareKernel : 0U;
  row.kernels |= (row.mixed | row.weighed) != 0 || rule.plausibility > 0.0 ? kMixKernel : 0U;
  return row;
}

}  // namespace dlf::cuda
