#include "fusion/cuda/row_tokens.h"

namespace dlf::cuda {
namespace {

// A large model with a NaN, or without a token, has an open gate, so that the solver finds the fault.
__device__ bool is_closed(RowTokens& tokens, const FusionArgs& args, const RowRule& rule) {
  const float* large = tokens.of(args.large);
  const RowTokens::LogSum total = tokens.log_sum([&](int64_t i) { return large[i]; });
  if (static_cast<GateKind>(rule.gate) == GateKind::top_prob) {
    return weight_of(total.peak, total.value) > rule.gate_threshold;
  }
  // The entropy as a sum of numbers that are not negative: log Σe^(x − peak) and the mean of peak − x.
  float below = 0.0F;
  tokens.for_each([&](int64_t i) {
    below += large[i] == -kInfinity ? 0.0F : weight_of(large[i], total.value) * (total.peak - large[i]);
  });
  const float entropy = total.value - total.peak + tokens.sum(below);
  return entropy < rule.gate_threshold;
}

__global__ void __launch_bounds__(kSolverThreads, 1) gate_kernel(const __grid_constant__ FusionArgs args) {
  RowTokens tokens(args, *shared_memory<RowTokens::Memory>());
  const RowRule* rule = rule_for(args, tokens.row(), kGateKernel);
  if (rule == nullptr) {
    return;
  }
  const bool closed = is_closed(tokens, args, *rule);
  begin_record(tokens, args, closed);
  if (!closed && args.opened != nullptr && tokens.is_first()) {
    *args.opened = 1;
  }
  tokens.leave();
}

}  // namespace

void gate_rows(const FusionArgs& args, int cluster, Stream stream) {
  launch_rows(gate_kernel, args, cluster, sizeof(RowTokens::Memory), stream);
}

}  // namespace dlf::cuda
