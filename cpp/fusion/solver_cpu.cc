#include "fusion/sweep.h"

namespace dlf::DLF_CPU {
namespace {

// Vectors as the compiler knows them, as wide as the instruction set's: everything inlines, so nothing of one
// instruction set can be linked into another's.
#if defined(CPU_CAPABILITY_AVX512)
constexpr int kWidth = 8;
#elif defined(CPU_CAPABILITY_AVX2)
constexpr int kWidth = 4;
#else
constexpr int kWidth = 2;
#endif
typedef double Vector __attribute__((vector_size(kWidth * sizeof(double)), may_alias));
typedef int64_t Mask __attribute__((vector_size(kWidth * sizeof(int64_t))));
static_assert(kSweepBlock % kWidth == 0);

constexpr float kInfinityF = __builtin_huge_valf();
constexpr double kInfinity = __builtin_huge_val();
constexpr float kLargestF = __FLT_MAX__;

inline Vector load(const double* from) { return *reinterpret_cast<const Vector*>(from); }

inline double sum(Vector x) {
  double total = x[0];
  for (int lane = 1; lane < kWidth; ++lane) {
    total += x[lane];
  }
  return total;
}

// e^x for x <= 0, within 1e-14; 0 below −700, −inf included. Two to the nearest power by adding 1.5·2⁵², which leaves
// the integer in the low bits, then a Taylor polynomial on |r| <= ln 2 / 2.
inline Vector exp_not_positive(Vector x) {
  constexpr double kRound = 6755399441055744.0;
  const Vector shifted = x * 1.4426950408889634 + kRound;
  const Vector power = shifted - kRound;
  Vector r = x - power * 6.93147180369123816490e-01;
  r = r - power * 1.90821492927058770002e-10;
  Vector p = r * (1.0 / 39916800) + 1.0 / 3628800;
  p = p * r + 1.0 / 362880;
  p = p * r + 1.0 / 40320;
  p = p * r + 1.0 / 5040;
  p = p * r + 1.0 / 720;
  p = p * r + 1.0 / 120;
  p = p * r + 1.0 / 24;
  p = p * r + 1.0 / 6;
  p = p * r + 0.5;
  p = p * r + 1.0;
  p = p * r + 1.0;
  const Mask scaled = reinterpret_cast<Mask>(p) + (reinterpret_cast<Mask>(shifted) << 52);
  const Vector zero = {};
  return x > -700.0 ? reinterpret_cast<Vector>(scaled) : zero;
}

struct alignas(64) Buffer {
  double at[kSweepBlock];
};

// Fills up to a whole vector with tokens that weigh nothing.
inline int64_t pad(Buffer& logit, Buffer& delta, int64_t size) {
  for (; size % kWidth != 0; ++size) {
    logit.at[size] = -kInfinity;
    delta.at[size] = 0.0;
  }
  return size;
}

// The largest logit + αΔ.
inline double peak_of(const Buffer& logit, const Buffer& delta, double alpha, int64_t size) {
  Vector peak = Vector{} - kInfinity;
  for (int64_t i = 0; i < size; i += kWidth) {
    const Vector x = load(logit.at + i) + alpha * load(delta.at + i);
    peak = x > peak ? x : peak;
  }
  double largest = peak[0];
  for (int lane = 1; lane < kWidth; ++lane) {
    largest = peak[lane] > largest ? peak[lane] : largest;
  }
  return largest;
}

inline BlockSum moments(const Buffer& logit, const Buffer& delta, double alpha, int64_t size) {
  const double peak = peak_of(logit, delta, alpha, size);
  if (peak == -kInfinity) {
    return {peak, 0.0, 0.0, 0.0};
  }
  Vector weight = {};
  Vector first = {};
  Vector second = {};
  for (int64_t i = 0; i < size; i += kWidth) {
    const Vector d = load(delta.at + i);
    const Vector w = exp_not_positive(load(logit.at + i) + alpha * d - peak);
    const Vector wd = w * d;
    weight += w;
    first += wd;
    second += wd * d;
  }
  return {peak, sum(weight), sum(first), sum(second)};
}

inline uint32_t flags_of(const CurveBlock& block) {
  uint32_t large = 0;
  uint32_t expert = 0;
  uint32_t base = 0;
  uint32_t outside = 0;
  for (int64_t i = block.begin; i < block.end; ++i) {
    const float l = block.large[i];
    const float e = block.expert[i];
    const float b = block.base[i];
    large |= l < kInfinityF ? 0 : 1;  // also catches NaN
    expert |= e < kInfinityF ? 0 : 1;
    base |= b < kInfinityF ? 0 : 1;
    outside |= (l != -kInfinityF ? 1 : 0) & ((e == -kInfinityF ? 1 : 0) | (b == -kInfinityF ? 1 : 0));
  }
  return large * kBadLarge | expert * kBadExpert | base * kBadBase | outside * kShrinksSupport;
}

// The weighted sum of the experts' centred differences, Σ α_tΔ_t.
template <typename Block>
inline void weighted_delta(const Block& block, Buffer& delta, int64_t size) {
  for (int64_t i = 0; i < size; ++i) {
    delta.at[i] = 0.0;
  }
  for (int t = 0; t < block.count; ++t) {
    if (block.alpha[t] == 0.0) {
      continue;
    }
    const float* expert = block.experts[t] + block.begin;
    const float* base = block.bases[t] + block.begin;
    for (int64_t i = 0; i < size; ++i) {
      delta.at[i] += block.alpha[t] * (static_cast<double>(expert[i]) - static_cast<double>(base[i]) - block.centre[t]);
    }
  }
}

}  // namespace

void sweep_curve(const CurveBlock& block) {
  if (block.flags != nullptr) {
    *block.flags = flags_of(block);
  }
  Buffer logit;
  Buffer delta;
  const int64_t tokens = block.end - block.begin;
  const float* large = block.large + block.begin;
  const float* expert = block.expert + block.begin;
  const float* base = block.base + block.begin;
  for (int64_t i = 0; i < tokens; ++i) {
    const double difference = static_cast<double>(expert[i]) - static_cast<double>(base[i]) - block.centre;
    logit.at[i] = large[i];
    delta.at[i] = large[i] == -kInfinityF ? 0.0 : difference;
  }
  const int64_t size = pad(logit, delta, tokens);
  for (int k = 0; k < block.points; ++k) {
    block.sums[k] = moments(logit, delta, block.alpha[k], size);
  }
  if (block.on_base) {
    for (int64_t i = 0; i < tokens; ++i) {
      logit.at[i] = large[i] == -kInfinityF ? -kInfinity : static_cast<double>(base[i]);
    }
    block.sums[block.points] = moments(logit, delta, 0.0, size);
    block.sums[block.points + 1] = moments(logit, delta, 1.0, size);
  }
}

void sweep_fuse(const FuseBlock& block) {
  Buffer logit;
  Buffer delta;
  const int64_t tokens = block.end - block.begin;
  const float* large = block.large + block.begin;
  float* fused = block.logits + block.begin;
  weighted_delta(block, delta, tokens);
  double offset = 0.0;
  for (int t = 0; t < block.count; ++t) {
    offset += block.alpha[t] * block.centre[t];
  }
  for (int64_t i = 0; i < tokens; ++i) {
    const bool in_support = large[i] != -kInfinityF;
    const double d = in_support ? delta.at[i] : 0.0;
    const double l = large[i];
    double sum = l + d + offset;
    sum = sum < kLargestF ? sum : kLargestF;  // a finite logit stays finite
    sum = sum > -kLargestF ? sum : -kLargestF;
    fused[i] = in_support ? static_cast<float>(sum) : -kInfinityF;
    delta.at[i] = d;
    logit.at[i] = l;
  }
  const int64_t size = pad(logit, delta, tokens);
  block.sums[0] = moments(logit, delta, 0.0, size);
  block.sums[1] = moments(logit, delta, 1.0, size);
}

void sweep_joint(const JointBlock& block) {
  Buffer logit;
  Buffer delta;
  Buffer weight;
  Buffer each[kSweepExperts];
  const int64_t tokens = block.end - block.begin;
  const float* large = block.large + block.begin;
  weighted_delta(block, delta, tokens);
  for (int64_t i = 0; i < tokens; ++i) {
    delta.at[i] = large[i] == -kInfinityF ? 0.0 : delta.at[i];
    logit.at[i] = large[i];
  }
  const int64_t size = pad(logit, delta, tokens);
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
  Vector total = {};
  for (int64_t i = 0; i < size; i += kWidth) {
    const Vector w = exp_not_positive(load(logit.at + i) + load(delta.at + i) - peak);
    *reinterpret_cast<Vector*>(weight.at + i) = w;
    total += w;
  }
  *out++ = sum(total);
  for (int t = 0; t < block.count; ++t) {
    const float* expert = block.experts[t] + block.begin;
    const float* base = block.bases[t] + block.begin;
    for (int64_t i = 0; i < tokens; ++i) {
      const double difference = static_cast<double>(expert[i]) - static_cast<double>(base[i]) - block.centre[t];
      each[t].at[i] = large[i] == -kInfinityF ? 0.0 : difference;
    }
    pad(logit, each[t], tokens);
    Vector first = {};
    for (int64_t i = 0; i < size; i += kWidth) {
      first += load(weight.at + i) * load(each[t].at + i);
    }
    *out++ = sum(first);
  }
  for (int t = 0; t < block.count; ++t) {
    for (int64_t i = 0; i < size; i += kWidth) {
      *reinterpret_cast<Vector*>(delta.at + i) = load(weight.at + i) * load(each[t].at + i);
    }
    for (int s = 0; s <= t; ++s) {
      Vector second = {};
      for (int64_t i = 0; i < size; i += kWidth) {
        second += load(delta.at + i) * load(each[s].at + i);
      }
      *out++ = sum(second);
    }
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
