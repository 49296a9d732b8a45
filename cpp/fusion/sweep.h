#pragma once

#include <cstdint>

#include "support/cpu_capability.h"

// The sweeps over the vocabulary: what they take and give. Plain structs without functions, because the kernels are
// compiled for several instruction sets and nothing inline may be shared among them.
namespace dlf {

inline constexpr int64_t kSweepBlock = 1024;  // tokens that one call handles: 16 KB of doubles stay in the first cache
inline constexpr int kSweepPoints = 11;       // values of α of one sweep
inline constexpr int kSweepExperts = 16;

// Sums over some tokens under the weights exp(logit + αΔ − peak), peak being their largest exponent.
struct BlockSum {
  double peak;
  double weight;  // Σ w
  double first;   // Σ wΔ
  double second;  // Σ wΔ²
};

// What a block's logits hold besides finite numbers: a NaN or +inf, or a −inf of the expert or the base where large has
// none.
enum SweepFlag : uint32_t {
  kBadLarge = 1,
  kBadExpert = 2,
  kBadBase = 4,
  kShrinksSupport = 8,
};

// Sums of one expert's Δ = expert − base − centre over the tokens [begin, end): under large + αΔ for every given α and,
// with on_base, under base (= Q) and base + Δ (= Q_t), which follow in `sums`. Tokens where large is −inf don't take
// part.
struct CurveBlock {
  const float* large;
  const float* expert;
  const float* base;
  int64_t begin;
  int64_t end;
  double centre;
  const double* alpha;
  int points;
  bool on_base;
  BlockSum* sums;   // points, and 2 more with on_base
  uint32_t* flags;  // where not null, takes the block's flags
};

// The fused logits of a block, and sums of δ = Σ α_tΔ_t under large (sums[0]) and large + δ (sums[1]).
struct FuseBlock {
  const float* large;
  const float* const* experts;
  const float* const* bases;
  const double* alpha;
  const double* centre;
  int count;
  int64_t begin;
  int64_t end;
  float* logits;
  BlockSum* sums;
};

// Under large + Σ α_tΔ_t: peak, Σ w, then Σ wΔ_t for every expert, then Σ wΔ_tΔ_s for s <= t.
struct JointBlock {
  const float* large;
  const float* const* experts;
  const float* const* bases;
  const double* alpha;
  const double* centre;
  int count;
  int64_t begin;
  int64_t end;
  double* sums;
};

// Copies large to support with −inf wherever an expert or a base is −inf.
struct SupportBlock {
  const float* large;
  const float* const* experts;
  const float* const* bases;
  int count;
  int64_t begin;
  int64_t end;
  float* support;
};

DLF_CPU_KERNEL(sweep_curve, const CurveBlock& block);
DLF_CPU_KERNEL(sweep_fuse, const FuseBlock& block);
DLF_CPU_KERNEL(sweep_joint, const JointBlock& block);
DLF_CPU_KERNEL(sweep_support, const SupportBlock& block);

}  // namespace dlf
