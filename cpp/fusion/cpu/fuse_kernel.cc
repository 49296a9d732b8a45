#include "fusion/cpu/sweep_vector.h"

// The sweeps over several experts at once: the fused logits, and the moments of all differences together.
namespace dlf::DLF_CPU {
namespace {

constexpr float kLargestF = __FLT_MAX__;

// The experts whose weight is not 0.
struct Weighted {
  int count = 0;
  double alpha[kSweepExperts];
  double centre[kSweepExperts];
  const float* expert[kSweepExperts];
  const float* base[kSweepExperts];

  template <typename Block>
  explicit Weighted(const Block& block) {
    for (int t = 0; t < block.count; ++t) {
      if (block.alpha[t] != 0.0) {
        alpha[count] = block.alpha[t];
        centre[count] = block.centre[t];
        expert[count] = block.experts[t] + block.begin;
        base[count++] = block.bases[t] + block.begin;
      }
    }
  }

  // Σ α_tΔ_t of tokens i, i + 1, …
  Vector delta(int64_t i, int64_t tokens) const {
    Vector sum = {};
    for (int t = 0; t < count; ++t) {
      sum += alpha[t] * (load(expert[t], i, tokens) - load(base[t], i, tokens) - centre[t]);
    }
    return sum;
  }
};

}  // namespace

void sweep_fuse(const FuseBlock& block) {
  Buffer logit;
  Buffer delta;
  const int64_t tokens = block.end - block.begin;
  const float* large = block.large + block.begin;
  float* fused = block.logits + block.begin;
  const Weighted experts(block);
  double offset = 0.0;
  for (int t = 0; t < experts.count; ++t) {
    offset += experts.alpha[t] * experts.centre[t];
  }
  Vector peaks = Vector{} - kInfinity;
  for (int64_t i = 0; i < tokens; i += kWidth) {
    const Vector l = load(large, i, tokens);
    const Mask excluded = l == -kInfinity;
    const Vector d = excluded ? Vector{} : experts.delta(i, tokens);
    logit.store(i, l);
    delta.store(i, d);
    peaks = larger(l + d, peaks);
    Vector sum = l + d + offset;
    sum = sum < kLargestF ? sum : Vector{} + kLargestF;  // a finite logit stays finite
    sum = sum > -kLargestF ? sum : Vector{} - kLargestF;
    store(excluded ? l : sum, fused, i, tokens);
  }
  const double peak = largest(peaks);
  Vector total = {};
  Vector first = {};
  for (int64_t i = 0; i < tokens && peak != -kInfinity; i += kWidth) {
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
  const Weighted experts(block);
  Vector peaks = Vector{} - kInfinity;
  for (int64_t i = 0; i < tokens; i += kWidth) {
    const Vector l = load(large, i, tokens);
    const Vector d = l == -kInfinity ? Vector{} : experts.delta(i, tokens);
    logit.store(i, l);
    delta.store(i, d);
    peaks = larger(l + d, peaks);
  }
  const double peak = largest(peaks);
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
