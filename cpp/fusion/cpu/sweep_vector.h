#pragma once

#include "fusion/cpu/sweep.h"

// Vector types of the compiler for the sweeps' kernels, as wide as the instruction set's registers. Only *_kernel.cc
// files include this: everything here is local to the file and the instruction set that it is compiled for, so that
// nothing of one instruction set can be linked into another's.
namespace dlf::DLF_CPU {
namespace {

#if defined(CPU_CAPABILITY_AVX512)
constexpr int kWidth = 8;
#elif defined(CPU_CAPABILITY_AVX2)
constexpr int kWidth = 4;
#else
constexpr int kWidth = 2;
#endif
typedef double Vector __attribute__((vector_size(kWidth * sizeof(double)), may_alias));
typedef int64_t Mask __attribute__((vector_size(kWidth * sizeof(int64_t))));
typedef uint64_t Bits __attribute__((vector_size(kWidth * sizeof(uint64_t))));
typedef float Floats __attribute__((vector_size(kWidth * sizeof(float)), aligned(alignof(float)), may_alias));
static_assert(kSweepBlock % kWidth == 0);

constexpr float kInfinityF = __builtin_huge_valf();
constexpr double kInfinity = __builtin_huge_val();

// Weights this many nats below the peak count as 0.
constexpr double kNegligible = 500.0;

// One number for every token of a block.
struct alignas(64) Buffer {
  double at[kSweepBlock];

  Vector load(int64_t i) const { return *reinterpret_cast<const Vector*>(at + i); }
  void store(int64_t i, Vector x) { *reinterpret_cast<Vector*>(at + i) = x; }
};

inline double sum(Vector x) {
  double total = x[0];
  for (int lane = 1; lane < kWidth; ++lane) {
    total += x[lane];
  }
  return total;
}

inline Vector larger(Vector x, Vector y) { return x > y ? x : y; }

inline double largest(Vector x) {
  double most = x[0];
  for (int lane = 1; lane < kWidth; ++lane) {
    most = x[lane] > most ? x[lane] : most;
  }
  return most;
}

// e^x for x <= 700, within 1e-13; 0 below −kNegligible, −inf included. Adding 1.5·2⁵² rounds x / ln 2 to an integer in
// the low bits; a polynomial 1 + r + r²q(r), with q interpolated at Chebyshev nodes, covers the rest |r| <= ln 2 / 2.
inline Vector exponential(Vector x) {
  constexpr double kRound = 6755399441055744.0;
  const Vector shifted = x * 1.4426950408889634 + kRound;
  const Vector power = shifted - kRound;
  Vector r = x - power * 6.93147180369123816490e-01;
  r = r - power * 1.90821492927058770002e-10;
  Vector p = r * 2.7617564785996704e-06 + 2.4867870179820457e-05;
  p = p * r + 1.9841224599655833e-04;
  p = p * r + 1.388883911057181e-03;
  p = p * r + 8.33333334420298e-03;
  p = p * r + 4.166666678626574e-02;
  p = p * r + 1.6666666666662586e-01;
  p = p * r + 4.999999999995511e-01;
  p = p * r + 1.0;
  p = p * r + 1.0;
  const Bits scaled = reinterpret_cast<Bits>(p) + (reinterpret_cast<Bits>(shifted) << 52);
  const Vector zero = {};
  return x > -kNegligible ? reinterpret_cast<Vector>(scaled) : zero;
}

// Rounds a number of tokens up to whole vectors: buffers are padded with tokens that take no part.
inline int64_t padded(int64_t tokens) { return (tokens + kWidth - 1) / kWidth * kWidth; }

// Logits of tokens i, i + 1, …, and −inf after the last.
inline Vector load(const float* logits, int64_t i, int64_t tokens) {
  if (i + kWidth <= tokens) {
    return __builtin_convertvector(*reinterpret_cast<const Floats*>(logits + i), Vector);
  }
  Vector x = Vector{} - kInfinity;
  for (int64_t lane = 0; i + lane < tokens; ++lane) {
    x[lane] = logits[i + lane];
  }
  return x;
}

inline void store(Vector x, float* logits, int64_t i, int64_t tokens) {
  const Floats rounded = __builtin_convertvector(x, Floats);
  if (i + kWidth <= tokens) {
    *reinterpret_cast<Floats*>(logits + i) = rounded;
    return;
  }
  for (int64_t lane = 0; i + lane < tokens; ++lane) {
    logits[i + lane] = rounded[lane];
  }
}

// Reads a model's logits into doubles, with −inf for tokens that take no part (large is −inf). Returns their peak.
inline double read_logits(const float* logits, const float* large, int64_t tokens, Buffer& out) {
  Vector peak = Vector{} - kInfinity;
  for (int64_t i = 0; i < tokens; i += kWidth) {
    const Vector l = load(large, i, tokens);
    const Vector x = load(logits, i, tokens);
    const Vector taken = l == -kInfinity ? l : x;
    out.store(i, taken);
    peak = larger(taken, peak);
  }
  return largest(peak);
}

// Reads the differences Δ = expert − base − centre, 0 for tokens that take no part. Returns the largest |Δ|.
inline double read_delta(const float* large, const float* expert, const float* base, double centre, int64_t tokens,
                         Buffer& out) {
  Vector most = {};
  for (int64_t i = 0; i < tokens; i += kWidth) {
    const Vector difference = load(expert, i, tokens) - load(base, i, tokens) - centre;
    const Vector d = load(large, i, tokens) == -kInfinity ? Vector{} : difference;
    out.store(i, d);
    most = larger(d > 0.0 ? d : -d, most);
  }
  return largest(most);
}

// Largest logit + αΔ.
inline double peak_of(const Buffer& logit, const Buffer& delta, double alpha, int64_t size) {
  Vector peak = Vector{} - kInfinity;
  for (int64_t i = 0; i < size; i += kWidth) {
    peak = larger(logit.load(i) + alpha * delta.load(i), peak);
  }
  return largest(peak);
}

// Writes exp(logit + αΔ − peak) of every token.
inline void weigh(const Buffer& logit, const Buffer& delta, double alpha, double peak, int64_t size, Buffer& weight) {
  for (int64_t i = 0; i < size; i += kWidth) {
    weight.store(i, exponential(logit.load(i) + alpha * delta.load(i) - peak));
  }
}

}  // namespace
}  // namespace dlf::DLF_CPU
