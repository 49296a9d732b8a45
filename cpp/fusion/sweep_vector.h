#pragma once

#include "fusion/sweep.h"

// Vectors for the sweeps' kernels, as the compiler knows them and as wide as the instruction set's. Included only by
// *_cpu.cc files: everything here is local to the file and the instruction set that it is compiled for, so that nothing
// of one instruction set can be linked into another's.
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
static_assert(kSweepBlock % kWidth == 0);

constexpr float kInfinityF = __builtin_huge_valf();
constexpr double kInfinity = __builtin_huge_val();

// Weights so many nats below the peak count as 0.
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

// e^x for x <= 700, within 1e-14; 0 below −kNegligible, −inf included. Two to the nearest power by adding 1.5·2⁵²,
// which leaves the integer in the low bits, then a Taylor polynomial on |r| <= ln 2 / 2.
inline Vector exponential(Vector x) {
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
  return x > -kNegligible ? reinterpret_cast<Vector>(scaled) : zero;
}

// Rounds a number of tokens up to whole vectors: the buffers are filled up with tokens that weigh nothing.
inline int64_t padded(int64_t tokens) { return (tokens + kWidth - 1) / kWidth * kWidth; }

inline void pad(Buffer& buffer, int64_t tokens, double value) {
  for (int64_t i = tokens; i < padded(tokens); ++i) {
    buffer.at[i] = value;
  }
}

// A model's logits in double; −inf for tokens that take no part, which are those where large is −inf.
inline void read_logits(const float* logits, const float* large, int64_t tokens, Buffer& out) {
  for (int64_t i = 0; i < tokens; ++i) {
    out.at[i] = large[i] == -kInfinityF ? -kInfinity : static_cast<double>(logits[i]);
  }
  pad(out, tokens, -kInfinity);
}

// The differences Δ = expert − base − centre, 0 for tokens that take no part.
inline void read_delta(const float* large, const float* expert, const float* base, double centre, int64_t tokens,
                       Buffer& out) {
  for (int64_t i = 0; i < tokens; ++i) {
    const double difference = static_cast<double>(expert[i]) - static_cast<double>(base[i]) - centre;
    out.at[i] = large[i] == -kInfinityF ? 0.0 : difference;
  }
  pad(out, tokens, 0.0);
}

inline double peak_of(const Buffer& logit, int64_t size) {
  Vector peak = Vector{} - kInfinity;
  for (int64_t i = 0; i < size; i += kWidth) {
    peak = larger(logit.load(i), peak);
  }
  return largest(peak);
}

// The largest logit + αΔ.
inline double peak_of(const Buffer& logit, const Buffer& delta, double alpha, int64_t size) {
  Vector peak = Vector{} - kInfinity;
  for (int64_t i = 0; i < size; i += kWidth) {
    peak = larger(logit.load(i) + alpha * delta.load(i), peak);
  }
  return largest(peak);
}

// exp(logit + αΔ − peak) of every token.
inline void weigh(const Buffer& logit, const Buffer& delta, double alpha, double peak, int64_t size, Buffer& weight) {
  for (int64_t i = 0; i < size; i += kWidth) {
    weight.store(i, exponential(logit.load(i) + alpha * delta.load(i) - peak));
  }
}

}  // namespace
}  // namespace dlf::DLF_CPU
