#pragma once

#include <cstdint>
#include <span>

#include "fusion/rule.h"

namespace dlf::cuda {

// The kernels that solve rows of several experts. The rule of a row alone chooses its kernel, so that other rows change
// no bit of it.
enum SolverKernel : uint32_t {
  kSearchKernel = 1,
  kJointKernel = 2,
};

// A row's rule as the kernels read it: numbers in device memory, so that one launch or graph serves any rules.
struct RowRule {
  uint32_t chosen;  // bit t: expert t is fused, else its logits are not read
  uint32_t given;   // bit t: its weight is alpha[t]
  uint32_t kernel;  // a SolverKernel
  int32_t meets_mean;
  int32_t on_grid;
  float f_weight;
  float g_weight;
  float alpha[kMaxExperts];
  float alpha_max[kMaxExperts];  // of the weights that are solved
};

// Rule of a row that fuses `experts`, which are some of `all` experts.
inline RowRule row_rule(const Rule& rule, std::span<const int> experts, int all) {
  RowRule row = {};
  row.kernel = rule.is_joint() && all > 1 ? kJointKernel : kSearchKernel;
  row.meets_mean = rule.meets_mean() ? 1 : 0;
  row.on_grid = rule.on_grid() ? 1 : 0;
  row.f_weight = static_cast<float>(rule.matching().f_weight);
  row.g_weight = static_cast<float>(rule.matching().g_weight);
  for (size_t i = 0; i < experts.size(); ++i) {
    const int t = experts[i];
    const ExpertWeight weight = rule.weight(i);
    row.chosen |= 1U << t;
    row.given |= weight.solved() ? 0U : 1U << t;
    row.alpha[t] = static_cast<float>(weight.given.value_or(0.0));
    row.alpha_max[t] = static_cast<float>(weight.alpha_max);
  }
  return row;
}

}  // namespace dlf::cuda
