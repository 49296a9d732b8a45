#pragma once

#include <cstdint>

#include "support/cpu_capability.h"

// Arguments and results of the sweeps over the vocabulary. They are plain structs without functions, because the
// kernels are compiled for several instruction sets and nothing inline may be shared among them.
namespace dlf {

inline constexpr int64_t kSweepBlock = 1024;  // tokens per kernel call; a double for each is 8 KB
inline constexpr int kSweepPoints = 21;       // most values of α in one sweep
inline constexpr int kSweepRanges = 8;        // most ranges in which they lie
inline constexpr int kSweepExperts = 16;

// Values of α an equal step apart, both ends included; a count of 1 is `first` alone. e^{(α+h)Δ} = e^{αΔ}·e^{hΔ}, so
// all of them cost two exponentials per token.
struct AlphaRange {
  double first;
  double last;
  int count;
};

// Sums over some tokens under the weights exp(logit + αΔ − peak), peak being their largest exponent.
struct BlockSum {
  double peak;
  double weight;  // Σ w
  double first;   // Σ wΔ
  double second;  // Σ wΔ²
};

// Logits of a block that are not finite: NaN or +inf, or −inf in the expert or the base where large has none.
enum SweepFlag : uint32_t {
  kBadLarge = 1,
  kBadExpert = 2,
  kBadBase = 4,
  kShrinksSupport = 8,
};

// Sums over the tokens [begin, end) for all experts of a row, Δ_t = expert_t − base_t − centre_t. Tokens where large is
// −inf don't take part.
struct RowBlock {
  const float* large;
  const float* const* experts;
  const float* const* bases;
  const double* centre;
  int count;
  int64_t begin;
  int64_t end;
  const AlphaRange* ranges;  // one per expert, starting at α = 0
  // Those of expert t begin at t * sums_stride: under large + αΔ_t for every α, then under base (= Q) and base + Δ_t
  // (= Q_t), whose `second` has no meaning.
  BlockSum* sums;
  uint32_t* flags;  // that of expert t is at t * flags_stride; may be null
  int64_t sums_stride;
  int64_t flags_stride;
};

// The same sums under large + αΔ, for one expert and any ranges of α.
struct CurveBlock {
  const float* large;
  const float* expert;
  const float* base;
  double centre;
  int64_t begin;
  int64_t end;
  const AlphaRange* ranges;
  int count;  // of ranges
  BlockSum* sums;
};

// Fused logits of a block, and its sums of δ = Σ α_tΔ_t under large + δ, without `second`.
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
  BlockSum* sum;
};

// Sums under large + Σ α_tΔ_t: peak, Σ w, then Σ wΔ_t for every expert, then Σ wΔ_tΔ_s for s <= t.
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

// Sums of one model: peak, Σ exp(logit − peak), Σ exp(logit − peak)(logit − peak). Tokens where `large` is −inf don't
// take part.
struct ModelBlock {
  const float* logits;
  const float* large;
  int64_t begin;
  int64_t end;
  BlockSum* sum;
};

// Σ p log(p / (p + q)) + q log(q / (p + q)) of an expert p and its base q.
struct DivergenceBlock {
  const float* large;
  const float* expert;
  const float* base;
  double expert_log_sum;  // log Σ exp(logit), over the whole vocabulary
  double base_log_sum;
  int64_t begin;
  int64_t end;
  double* sum;
};

// Replaces logits by the logarithms of the mixed probabilities; sums f = KL(mixed‖large) and g = KL(large‖mixed). A
// shift is what turns logits into logarithms of weighted probabilities.
struct MixBlock {
  const float* large;
  const float* const* experts;
  const double* shifts;
  int count;
  double fused_shift;
  double large_weight;
  double large_log_sum;  // of the weighted logits
  int64_t begin;
  int64_t end;
  float* logits;
  double* sums;  // f and g
};

// Copies factor · large, infinities and NaN as they are.
struct ScaleBlock {
  const float* large;
  float factor;
  int64_t begin;
  int64_t end;
  float* scaled;
};

// Excludes the tokens whose large logit is less than `least`.
struct MaskBlock {
  const float* large;
  float least;
  int64_t begin;
  int64_t end;
  float* logits;
};

DLF_CPU_KERNEL(sweep_row, const RowBlock& block);
DLF_CPU_KERNEL(sweep_curve, const CurveBlock& block);
DLF_CPU_KERNEL(sweep_fuse, const FuseBlock& block);
DLF_CPU_KERNEL(sweep_joint, const JointBlock& block);
DLF_CPU_KERNEL(sweep_support, const SupportBlock& block);
DLF_CPU_KERNEL(sweep_model, const ModelBlock& block);
DLF_CPU_KERNEL(sweep_divergence, const DivergenceBlock& block);
DLF_CPU_KERNEL(sweep_mix, const MixBlock& block);
DLF_CPU_KERNEL(sweep_scale, const ScaleBlock& block);
DLF_CPU_KERNEL(sweep_mask, const MaskBlock& block);

}  // namespace dlf
