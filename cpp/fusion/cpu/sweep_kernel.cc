#include "fusion/cpu/sweep_vector.h"

// The sweeps that evaluate the curves α → P_α.
namespace dlf::DLF_CPU {
namespace {

// Most nats that the exponents αΔ may move along a range before the weights are computed anew. Weights begin at e^0 for
// the token at the peak, and those below e^−500 count as 0. After 200 nats all still fit a double, and a token that
// counts as 0 would weigh less than e^(−500+200) beside more than e^−200: nothing.
constexpr double kReach = 200.0;
static_assert(kNegligible >= 2 * kReach + 50);

inline double step_of(const AlphaRange& range) {
  return range.count > 1 ? (range.last - range.first) / (range.count - 1) : 0.0;
}

// Sums at `count` values of α a step apart, from the weights `start` at the first. Leaves in `weight` the weights at
// the value after the last.
template <int count>
inline void walk(const Buffer& start, const Buffer& delta, const Buffer& ratio, double peak, int64_t size,
                 Buffer& weight, BlockSum* sums) {
  Vector total[count] = {};
  Vector first[count] = {};
  Vector second[count] = {};
  for (int64_t i = 0; i < size; i += kWidth) {
    const Vector d = delta.load(i);
    const Vector r = ratio.load(i);
    Vector w = start.load(i);
    for (int k = 0; k < count; ++k) {
      const Vector wd = w * d;
      total[k] += w;
      first[k] += wd;
      second[k] += wd * d;
      w *= r;
    }
    weight.store(i, w);
  }
  for (int k = 0; k < count; ++k) {
    sums[k] = {peak, sum(total[k]), sum(first[k]), sum(second[k])};
  }
}

// Walks four values at a time, so that their sums stay in registers.
inline void walk(const Buffer& start, const Buffer& delta, const Buffer& ratio, double peak, int count, int64_t size,
                 Buffer& weight, BlockSum* sums) {
  const Buffer* from = &start;
  for (; count >= 4; count -= 4, sums += 4, from = &weight) {
    walk<4>(*from, delta, ratio, peak, size, weight, sums);
  }
  switch (count) {
    case 3:
      return walk<3>(*from, delta, ratio, peak, size, weight, sums);
    case 2:
      return walk<2>(*from, delta, ratio, peak, size, weight, sums);
    case 1:
      return walk<1>(*from, delta, ratio, peak, size, weight, sums);
    default:
      return;
  }
}

// One expert's differences in a block, and e^{hΔ} for the step h of a range.
struct Differences {
  Buffer delta;
  Buffer ratio;
  double most;  // largest |Δ|

  void read(const float* large, const float* expert, const float* base, double centre, int64_t tokens) {
    most = read_delta(large, expert, base, centre, tokens, delta);
  }

  // Number of values of a range that one walk can serve.
  int stretch(const AlphaRange& range) const {
    const double steps = kReach / (step_of(range) * most + 1e-300);
    return steps < range.count ? 1 + static_cast<int>(steps) : range.count;
  }

  // Writes the ratio; it has no meaning, and is not used, where a single step exceeds kReach.
  void set_step(double step, int64_t size) {
    for (int64_t i = 0; i < size; i += kWidth) {
      ratio.store(i, exponential(step * delta.load(i)));
    }
  }
};

// Sums at every α of a range. `start` holds the weights at the first, relative to `peak`.
inline void scan(const Buffer& logit, const Differences& differences, const AlphaRange& range, const Buffer& start,
                 double peak, int64_t size, Buffer& weight, BlockSum* sums) {
  const Buffer& delta = differences.delta;
  const int stretch = differences.stretch(range);
  walk(start, delta, differences.ratio, peak, stretch, size, weight, sums);
  for (int k = stretch; k < range.count; k += stretch) {
    const double alpha = range.first + k * step_of(range);
    peak = peak_of(logit, delta, alpha, size);
    weigh(logit, delta, alpha, peak, size, weight);
    walk(weight, delta, differences.ratio, peak, k + stretch < range.count ? stretch : range.count - k, size, weight,
         sums + k);
  }
}

// Sums of w and wΔ under the weights w = base and w = base·e^Δ. Where α = 1 is 1, 2, 4, 8 or 16 steps away from 0, as
// by default, e^Δ is the ratio squared a few times; each squaring doubles its error.
inline void sum_target(const Buffer& base, const Differences& differences, double step, double peak, int64_t size,
                       BlockSum* sums) {
  constexpr int kSquarings = 4;
  int squarings = 0;
  double reached = step;
  for (; squarings < kSquarings && reached < 1.0; reached *= 2.0) {
    ++squarings;
  }
  const bool squares = reached == 1.0;
  Vector q_total = {};
  Vector q_first = {};
  Vector total = {};
  Vector first = {};
  for (int64_t i = 0; i < size; i += kWidth) {
    const Vector d = differences.delta.load(i);
    Vector factor = squares ? differences.ratio.load(i) : exponential(d);
    for (int k = 0; squares && k < squarings; ++k) {
      factor *= factor;
    }
    const Vector q = base.load(i);
    const Vector w = q * factor;
    q_total += q;
    q_first += q * d;
    total += w;
    first += w * d;
  }
  sums[0] = {peak, sum(q_total), sum(q_first), 0.0};
  sums[1] = {peak, sum(total), sum(first), 0.0};
}

inline uint32_t flags_of(const float* large, const float* expert, const float* base, int64_t tokens) {
  uint32_t bad_large = 0;
  uint32_t bad_expert = 0;
  uint32_t bad_base = 0;
  uint32_t outside = 0;
  for (int64_t i = 0; i < tokens; ++i) {
    const float l = large[i];
    const float e = expert[i];
    const float b = base[i];
    bad_large |= l < kInfinityF ? 0 : 1;  // also catches NaN
    bad_expert |= e < kInfinityF ? 0 : 1;
    bad_base |= b < kInfinityF ? 0 : 1;
    outside |= (l != -kInfinityF ? 1 : 0) & ((e == -kInfinityF ? 1 : 0) | (b == -kInfinityF ? 1 : 0));
  }
  return bad_large * kBadLarge | bad_expert * kBadExpert | bad_base * kBadBase | outside * kShrinksSupport;
}

}  // namespace

// Computes once what experts share: the weights under the large model and, for neighbours with one base, under that.
void sweep_row(const RowBlock& block) {
  const int64_t tokens = block.end - block.begin;
  const int64_t size = padded(tokens);
  const float* large = block.large + block.begin;
  Buffer logit;
  Buffer large_weight;
  Buffer base_logit;
  Buffer base_weight;
  Buffer weight;
  Differences differences;
  const double peak = read_logits(large, large, tokens, logit);
  double base_peak = 0.0;
  for (int t = 0; t < block.count; ++t) {
    const float* expert = block.experts[t] + block.begin;
    const float* base = block.bases[t] + block.begin;
    BlockSum* sums = block.sums + t * block.sums_stride;
    const AlphaRange& range = block.ranges[t];
    const double step = step_of(range);
    BlockSum* targets = sums + range.count;
    if (block.flags != nullptr) {
      block.flags[t * block.flags_stride] = flags_of(large, expert, base, tokens);
    }
    if (peak == -kInfinity) {  // no token takes part
      for (int k = 0; k < range.count + 2; ++k) {
        sums[k] = {peak, 0.0, 0.0, 0.0};
      }
      continue;
    }
    differences.read(large, expert, base, block.centre[t], tokens);
    const Buffer& delta = differences.delta;
    if (t == 0) {
      weigh(logit, delta, 0.0, peak, size, large_weight);
    }
    if (t == 0 || block.bases[t] != block.bases[t - 1]) {
      base_peak = read_logits(base, large, tokens, base_logit);
      weigh(base_logit, delta, 0.0, base_peak, size, base_weight);
    }
    const bool near = differences.most <= kReach;
    differences.set_step(step, size);
    scan(logit, differences, range, large_weight, peak, size, weight, sums);
    if (near) {
      sum_target(base_weight, differences, step, base_peak, size, targets);
    } else {
      const AlphaRange ends = {0.0, 1.0, 2};
      scan(base_logit, differences, ends, base_weight, base_peak, size, weight, targets);
    }
  }
}

void sweep_curve(const CurveBlock& block) {
  const int64_t tokens = block.end - block.begin;
  const int64_t size = padded(tokens);
  const float* large = block.large + block.begin;
  Buffer logit;
  Buffer weight;
  Differences differences;
  read_logits(large, large, tokens, logit);
  differences.read(large, block.expert + block.begin, block.base + block.begin, block.centre, tokens);
  BlockSum* sums = block.sums;
  for (const AlphaRange* range = block.ranges; range != block.ranges + block.count; sums += range->count, ++range) {
    const double peak = peak_of(logit, differences.delta, range->first, size);
    if (peak == -kInfinity) {
      for (int k = 0; k < range->count; ++k) {
        sums[k] = {peak, 0.0, 0.0, 0.0};
      }
      continue;
    }
    differences.set_step(step_of(*range), size);
    weigh(logit, differences.delta, range->first, peak, size, weight);
    scan(logit, differences, *range, weight, peak, size, weight, sums);
  }
}

void sweep_support(const SupportBlock& block) {
  for (int64_t i = block.begin; i < block.end; ++i) {
    block.support[i] = block.large[i];
  }
  for (int t = 0; t < block.count; ++t) {
    const float* expert = block.experts[t];
    const float* base = block.bases[t];
    for (int64_t i = block.begin; i < block.end; ++i) {
      const bool outside = expert[i] == -kInfinityF || base[i] == -kInfinityF;
      block.support[i] = outside ? -kInfinityF : block.support[i];
    }
  }
}

}  // namespace dlf::DLF_CPU
