#include "fusion/sweep_vector.h"

// The sweeps over several experts at once: the fused logits, and the moments of all differences together.
namespace dlf::DLF_CPU {
namespace {

constexpr float kLargestF = __FLT_MAX__;

// The weighted sum of the experts' centred differences, Σ α_tΔ_t; 0 for tokens that take no part.
template <typename Block>
inline void weighted_delta(const Block& block, const float* large, int64_t tokens, Buffer& delta) {
  for (int64_t i = 0; i < padded(tokens); i += kWidth) {
    delta.store(i, Vector{});
  }
  for (int t = 0; t < block.count; ++t) {
    if (block.alpha[t] == 0.0) {
      continue;
    }
    const float* expert = block.experts[t] + block.begin;
    const float* base = block.bases[t] + block.begin;
    for (int64_t i = 0; i < tokens; ++i) {
      const double difference = static_cast<double>(expert[i]) - static_cast<double>(base[i]) - block.centre[t];
      delta.at[i] += large[i] == -kInfinityF ? 0.0 : block.alpha[t] * difference;
    }
  }
}

}  // namespace

void sweep_fuse(const FuseBlock& block) {
  Buffer logit;
  Buffer delta;
  const int64_t tokens = block.end - block.begin;
  const int64_t size = padded(tokens);
  const float* large = block.large + block.begin;
  float* fused = block.logits + block.begin;
  weighted_delta(block, large, tokens, delta);
  read_logits(large, large, tokens, logit);
  double offset = 0.0;
  for (int t = 0; t < block.count; ++t) {
    offset += block.alpha[t] * block.centre[t];
  }
  for (int64_t i = 0; i < tokens; ++i) {
    double sum = logit.at[i] + delta.at[i] + offset;
    sum = sum < kLargestF ? sum : kLargestF;  // a finite logit stays finite
    sum = sum > -kLargestF ? sum : -kLargestF;
    fused[i] = large[i] == -kInfinityF ? -kInfinityF : static_cast<float>(sum);
  }
  const double peak = peak_of(logit, delta, 1.0, size);
  Vector total = {};
  Vector first = {};
  for (int64_t i = 0; i < size && peak != -kInfinity; i += kWidth) {
    const Vector d = delta.load(i);
    const Vector w = exponential(logit.load(i) + d - peak);
    total += w;
    first += w * d;
  }
  *block.sum = {peak, sum(total), sum(first), 0.0};
}

void sweep_joint(const JointBlock& block) {
  Buffer logit;
  Buffer delta;
  Buffer weight;
  Buffer each[kSweepExperts];
  const int64_t tokens = block.end - block.begin;
  const float* large = block.large + block.begin;
  const int64_t size = padded(tokens);
  weighted_delta(block, large, tokens, delta);
  read_logits(large, large, tokens, logit);
  const double peak = peak_of(logit, delta, 1.0, size);
  double* out = block.sums;
  *out++ = peak;
  if (peak == -kInfinity) {
    const int sums = 1 + block.count + block.count * (block.count + 1) / 2;
    for (int k = 0; k < sums; ++k) {
      *out++ = 0.0;
    }
    return;
  }
  weigh(logit, delta, 1.0, peak, size, weight);
  Vector total = {};
  for (int64_t i = 0; i < size; i += kWidth) {
    total += weight.load(i);
  }
  *out++ = sum(total);
  for (int t = 0; t < block.count; ++t) {
    read_delta(large, block.experts[t] + block.begin, block.bases[t] + block.begin, block.centre[t], tokens, each[t]);
    Vector first = {};
    for (int64_t i = 0; i < size; i += kWidth) {
      first += weight.load(i) * each[t].load(i);
    }
    *out++ = sum(first);
  }
  for (int t = 0; t < block.count; ++t) {
    for (int64_t i = 0; i < size; i += kWidth) {
      delta.store(i, weight.load(i) * each[t].load(i));
    }
    for (int s = 0; s <= t; ++s) {
      Vector second = {};
      for (int64_t i = 0; i < size; i += kWidth) {
        second += delta.load(i) * each[s].load(i);
      }
      *out++ = sum(second);
    }
  }
}

}  // namespace dlf::DLF_CPU
