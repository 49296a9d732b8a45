#include "fusion/cuda/row_tokens.h"

namespace dlf::cuda {
namespace {

struct MixMemory {
  RowTokens::Memory tokens;
  float shifts[kMaxExperts];  // log of the share, less log Σ e^logit: turns logits into logarithms of what is mixed in
};

// log(e^x + e^y), −inf if both are.
__device__ float log_add(float x, float y) {
  const float high = fmaxf(x, y);
  return high == -kInfinity ? high : high + log1pf(exp2_fast((fminf(x, y) - high) * kLog2E));
}

// The share of an expert's probabilities that is mixed in besides the given ones.
struct Selected {
  int expert;
  float share;
};

// By certainty, the selected expert gets the difference of its certainty and that of the fused distribution, one over
// the perplexity of each, if it is the surer one.
__device__ Selected choose_share(RowTokens& tokens, const FusionArgs& args, const RowRule& rule, const float* fused) {
  const int t = args.records[tokens.row()].selected;
  if (t < 0 || (rule.weighed >> t & 1U) == 0) {
    return {0, 0.0F};
  }
  const float* expert = tokens.of(args.experts[t]);
  const float of_fused = tokens.entropy([&](int64_t i) { return fused[i]; });
  const float of_expert = tokens.entropy([&](int64_t i) { return fused[i] == -kInfinity ? -kInfinity : expert[i]; });
  return {t, rule.rest * fmaxf(expf(-of_expert) - expf(-of_fused), 0.0F)};
}

// Replaces the fused logits by the logarithms of the mixed probabilities, with f and g of these.
__device__ void mix(RowTokens& tokens, const FusionArgs& args, const RowRule& rule, const Selected& selected,
                    float* fused, float* shifts) {
  const uint32_t experts = rule.mixed | (selected.share > 0.0F ? 1U << selected.expert : 0U);
  const float* large = tokens.of(args.large);
  const auto allowed = [&](int64_t i, float logit) { return fused[i] == -kInfinity ? -kInfinity : logit; };
  const float large_total =
      tokens.log_sum([&](int64_t i) { return allowed(i, scaled(large[i], rule.large_weight)); }).value;
  const float fused_shift =
      logf(rule.rest - selected.share) - tokens.log_sum([&](int64_t i) { return fused[i]; }).value;
  for (uint32_t rest = experts; rest != 0; rest &= rest - 1) {
    const int t = __ffs(static_cast<int>(rest)) - 1;
    const float* expert = tokens.of(args.experts[t]);
    const float total = tokens.log_sum([&](int64_t i) { return allowed(i, expert[i]); }).value;
    if (threadIdx.x == 0) {
      shifts[t] = logf((rule.mixed >> t & 1U) != 0 ? rule.mix[t] : selected.share) - total;
    }
  }
  __syncthreads();
  float f = 0.0F;
  float g = 0.0F;
  tokens.for_each([&](int64_t i) {
    if (fused[i] == -kInfinity) {
      return;
    }
    const float p = fmaxf(scaled(large[i], rule.large_weight) - large_total, -kLargest);
    float mixed = fused[i] + fused_shift;
    for (uint32_t rest = experts; rest != 0; rest &= rest - 1) {
      const int t = __ffs(static_cast<int>(rest)) - 1;
      mixed = log_add(mixed, tokens.of(args.experts[t])[i] + shifts[t]);
    }
    mixed = fmaxf(mixed, -kLargest);
    f += weight_of(mixed, 0.0F) * (mixed - p);
    g += weight_of(p, 0.0F) * (p - mixed);
    fused[i] = mixed;
  });
  f = tokens.sum(f);
  g = tokens.sum(g);
  if (tokens.is_first()) {
    FusionRecord& record = args.records[tokens.row()];
    for (int t = 0; t < args.expert_count; ++t) {
      record.alpha[t] = (rule.mixed >> t & 1U) != 0 ? rule.mix[t] : record.alpha[t];
    }
    record.f = fmaxf(f, 0.0F);
    record.g = fmaxf(g, 0.0F);
    ++record.sweeps;
  }
}

// Excludes the tokens that the large model alone finds implausible.
__device__ void mask(RowTokens& tokens, const FusionArgs& args, const RowRule& rule, float* fused) {
  const float* large = tokens.of(args.large);
  float most = -kInfinity;
  tokens.for_each([&](int64_t i) { most = fmaxf(most, large[i]); });
  const auto least = static_cast<float>(tokens.largest(most) + log(static_cast<double>(rule.plausibility)));
  tokens.for_each([&](int64_t i) { fused[i] = large[i] < least ? -kInfinity : fused[i]; });
  if (tokens.is_first()) {
    ++args.records[tokens.row()].sweeps;
  }
}

__global__ void __launch_bounds__(kSolverThreads, 1) mix_kernel(const __grid_constant__ FusionArgs args) {
  auto& memory = *shared_memory<MixMemory>();
  RowTokens tokens(args, memory.tokens);
  const RowRule* rule = rule_for(args, tokens.row(), kMixKernel);
  if (rule == nullptr) {
    return;
  }
  const FusionRecord& record = args.records[tokens.row()];
  if (record.closed != 0 || record.bad_model != kNoBadModel) {
    return;
  }
  float* fused = args.fused + tokens.row() * args.fused_stride;
  const Selected selected = choose_share(tokens, args, *rule, fused);
  if (rule->mixed != 0 || selected.share > 0.0F) {
    mix(tokens, args, *rule, selected, fused, memory.shifts);
  }
  if (rule->plausibility > 0.0F) {
    mask(tokens, args, *rule, fused);
  }
  tokens.leave();
}

}  // namespace

void mix_rows(const FusionArgs& args, int cluster, Stream stream) {
  launch_rows(mix_kernel, args, cluster, sizeof(MixMemory), stream);
}

}  // namespace dlf::cuda
