#include <climits>

#include "fusion/cuda/row_tokens.h"

namespace dlf::cuda {
namespace {

// Returns the first of the tokens with the largest logit.
__device__ int top(RowTokens& tokens, const float* logits) {
  float most = -kInfinity;
  int first = INT_MAX;
  tokens.for_each([&](int64_t i) {
    if (logits[i] > most || first == INT_MAX) {
      most = logits[i];
      first = static_cast<int>(i);
    }
  });
  const float peak = tokens.largest(most);
  return tokens.smallest(most == peak ? first : INT_MAX);
}

// Whether some expert's most probable token is not the large model's.
__device__ bool disagrees(RowTokens& tokens, const FusionArgs& args, uint32_t experts) {
  const int own = top(tokens, tokens.of(args.large));
  bool differs = false;
  for (int t = 0; t < args.expert_count; ++t) {
    differs = differs || ((experts >> t & 1U) != 0 && top(tokens, tokens.of(args.experts[t])) != own);
  }
  return differs;
}

// Copies the large model's logits with their coefficient to where the fused ones will go. If weights or certainty are
// measured, it excludes the tokens that any model of the row rules out.
__device__ void place_large(const RowTokens& tokens, const FusionArgs& args, const RowRule& rule, float* placed) {
  const float* large = tokens.of(args.large);
  const uint32_t looked_at = (rule.measured | rule.weighed) != 0 ? rule.chosen : 0;
  tokens.for_each([&](int64_t i) {
    bool is_out = false;
    for (uint32_t rest = looked_at; rest != 0; rest &= rest - 1) {
      const int t = __ffs(static_cast<int>(rest)) - 1;
      is_out = is_out || tokens.of(args.experts[t])[i] == -kInfinity || tokens.of(args.bases[t])[i] == -kInfinity;
    }
    const float logit = scaled(large[i], rule.large_weight);
    placed[i] = is_out && logit < kInfinity ? -kInfinity : logit;
  });
}

// The Jensen-Shannon divergence of an expert and its base over the tokens that `placed` allows, in nats.
__device__ float divergence(RowTokens& tokens, const float* placed, const float* expert, const float* base) {
  const auto total = [&](const float* logits) {
    return tokens.log_sum([&](int64_t i) { return placed[i] == -kInfinity ? -kInfinity : logits[i]; }).value;
  };
  const float expert_total = total(expert);
  const float base_total = total(base);
  float both = 0.0F;  // Σ p log(2p / (p + q)) + q log(2q / (p + q))
  tokens.for_each([&](int64_t i) {
    if (placed[i] == -kInfinity) {
      return;
    }
    const float p = expert[i] - expert_total;
    const float q = base[i] - base_total;
    const float apart = fabsf(p - q);
    const float gain = -log1pf(0.5F * expm1_fast(-apart));  // log 2 / (1 + e^−apart), of the larger
    both += weight_of(fmaxf(p, q), 0.0F) * gain + weight_of(fminf(p, q), 0.0F) * (gain - apart);
  });
  return fmaxf(0.5F * tokens.sum(both), 0.0F);
}

// Finds how the targets of experts are scaled: by how sure the large model is beside each, 2H(P) / (H(P) + H(Q_t)) up
// to 1, so that one that is surer moves less.
__device__ void weigh_targets(RowTokens& tokens, const FusionArgs& args, uint32_t experts, const float* placed) {
  const float of_large = tokens.entropy([&](int64_t i) { return placed[i]; });
  for (uint32_t rest = experts; rest != 0; rest &= rest - 1) {
    const int t = __ffs(static_cast<int>(rest)) - 1;
    const float* expert = tokens.of(args.experts[t]);
    const float both =
        of_large + tokens.entropy([&](int64_t i) { return placed[i] == -kInfinity ? -kInfinity : expert[i]; });
    if (tokens.is_first()) {
      args.records[tokens.row()].alpha[t] = both > 0.0F ? fminf(2.0F * of_large / both, 1.0F) : 1.0F;
    }
  }
}

__global__ void __launch_bounds__(kSolverThreads, 1) prepare_kernel(const __grid_constant__ FusionArgs args) {
  RowTokens tokens(args, *shared_memory<RowTokens::Memory>());
  const RowRule* rule = rule_for(args, tokens.row(), kPrepareKernel);
  if (rule == nullptr) {
    return;
  }
  FusionRecord& record = args.records[tokens.row()];
  float* fused = args.fused + tokens.row() * args.fused_stride;
  bool closed = false;
  if ((rule->kernels & kGateKernel) != 0) {
    closed = record.closed != 0;
  } else {
    closed = static_cast<GateKind>(rule->gate) == GateKind::disagree && !disagrees(tokens, args, rule->chosen);
    begin_record(tokens, args, closed);
  }
  if (!closed && rule->large_in_place != 0) {
    place_large(tokens, args, *rule, fused);
  }
  for (uint32_t rest = closed ? 0U : rule->measured; rest != 0; rest &= rest - 1) {
    const int t = __ffs(static_cast<int>(rest)) - 1;
    const float weight = divergence(tokens, fused, tokens.of(args.experts[t]), tokens.of(args.bases[t]));
    if (tokens.is_first()) {
      record.alpha[t] = fminf(weight, rule->alpha_max[t]);
    }
  }
  if (!closed && rule->weighed != 0) {
    weigh_targets(tokens, args, rule->weighed, fused);
  }
  tokens.leave();
}

}  // namespace

void prepare_rows(const FusionArgs& args, int cluster, Stream stream) {
  launch_rows(prepare_kernel, args, cluster, sizeof(RowTokens::Memory), stream);
}

}  // namespace dlf::cuda
