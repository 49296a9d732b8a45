#include "fusion/cpu/sweep_vector.h"

// The sweeps over probabilities themselves: of the large model for gates and masks, of experts that are measured or
// mixed in.
namespace dlf::DLF_CPU {
namespace {

// log(1 + e) for 0 <= e <= 1, within 1e-13: 2 artanh(s) with s = e / (2 + e) <= 1/3, by its series.
inline Vector log_one_plus(Vector e) {
  const Vector s = e / (e + 2.0);
  const Vector square = s * s;
  Vector p = Vector{} + 1.0 / 25.0;
  p = p * square + 1.0 / 23.0;
  p = p * square + 1.0 / 21.0;
  p = p * square + 1.0 / 19.0;
  p = p * square + 1.0 / 17.0;
  p = p * square + 1.0 / 15.0;
  p = p * square + 1.0 / 13.0;
  p = p * square + 1.0 / 11.0;
  p = p * square + 1.0 / 9.0;
  p = p * square + 1.0 / 7.0;
  p = p * square + 1.0 / 5.0;
  p = p * square + 1.0 / 3.0;
  p = p * square + 1.0;
  return 2.0 * s * p;
}

// log(e^x + e^y), −inf if both are.
inline Vector log_add(Vector x, Vector y) {
  const Vector high = x > y ? x : y;
  const Vector low = x > y ? y : x;
  const Vector sum = high + log_one_plus(exponential(low - high));
  return high == -kInfinity ? high : sum;
}

}  // namespace

void sweep_model(const ModelBlock& block) {
  const int64_t tokens = block.end - block.begin;
  Buffer logit;
  const double peak = read_logits(block.logits + block.begin, block.large + block.begin, tokens, logit);
  Vector total = {};
  Vector first = {};
  for (int64_t i = 0; i < tokens && peak != -kInfinity; i += kWidth) {
    const Vector below = logit.load(i) - peak;
    const Vector w = exponential(below);
    total += w;
    first += below == -kInfinity ? Vector{} : w * below;
  }
  *block.sum = {peak, sum(total), sum(first), 0.0};
}

void sweep_divergence(const DivergenceBlock& block) {
  const int64_t tokens = block.end - block.begin;
  const float* large = block.large + block.begin;
  const float* expert = block.expert + block.begin;
  const float* base = block.base + block.begin;
  Vector total = {};
  for (int64_t i = 0; i < tokens; i += kWidth) {
    const Vector p = load(expert, i, tokens) - block.expert_log_sum;
    const Vector q = load(base, i, tokens) - block.base_log_sum;
    const Vector both = log_add(p, q);
    const Vector part = exponential(p) * (p - both) + exponential(q) * (q - both);
    total += load(large, i, tokens) == -kInfinity ? Vector{} : part;
  }
  *block.sum = sum(total);
}

void sweep_mix(const MixBlock& block) {
  const int64_t tokens = block.end - block.begin;
  const float* large = block.large + block.begin;
  float* fused = block.logits + block.begin;
  Vector f = {};
  Vector g = {};
  for (int64_t i = 0; i < tokens; i += kWidth) {
    const Vector added = load(fused, i, tokens);
    const Mask excluded = added == -kInfinity;
    const Vector log_large = load(large, i, tokens) * block.large_weight - block.large_log_sum;
    Vector mixed = added + block.fused_shift;
    for (int t = 0; t < block.count; ++t) {
      mixed = log_add(mixed, load(block.experts[t] + block.begin, i, tokens) + block.shifts[t]);
    }
    const Vector change = mixed - log_large;
    const Vector f_part = exponential(mixed) * change;
    const Vector g_part = exponential(log_large) * change;
    f += excluded ? Vector{} : f_part;
    g -= excluded ? Vector{} : g_part;
    store(excluded ? added : mixed, fused, i, tokens);
  }
  block.sums[0] = sum(f);
  block.sums[1] = sum(g);
}

void sweep_scale(const ScaleBlock& block) {
  for (int64_t i = block.begin; i < block.end; ++i) {
    float scaled = block.large[i] * block.factor;
    scaled = scaled > __FLT_MAX__ ? __FLT_MAX__ : scaled;  // a finite logit stays finite
    scaled = scaled < -__FLT_MAX__ ? -__FLT_MAX__ : scaled;
    const bool finite = block.large[i] - block.large[i] == 0.0F;
    block.scaled[i] = finite ? scaled : block.large[i];
  }
}

void sweep_mask(const MaskBlock& block) {
  for (int64_t i = block.begin; i < block.end; ++i) {
    block.logits[i] = block.large[i] < block.least ? -kInfinityF : block.logits[i];
  }
}

}  // namespace dlf::DLF_CPU
