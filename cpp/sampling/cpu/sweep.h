#pragma once

#include <cstdint>

#include "support/cpu_capability.h"

namespace dlf {

// Sweeps over a vocabulary work in blocks: sums are kept per block, so that a draw skips whole blocks.
inline constexpr int64_t kSamplingBlock = 1024;
constexpr int64_t sampling_blocks(int64_t count) { return (count + kSamplingBlock - 1) / kSamplingBlock; }

struct Peak {
  int64_t index;  // of the first greatest value
  float value;    // -inf if no value is above it
};

// Keeps a value above `score`, or equal to it at an index up to `index`, whose weight is at least `weight`.
struct KeepRule {
  float score;
  int32_t index;
  float weight;
};

DLF_CPU_KERNEL(find_peak, const float* values, int64_t count, Peak* peak);

// Writes weights[i] = exp((values[i] - peak) * scale), with peak the greatest value, unless `weights` is null, and
// their sums per block. A NaN or +inf among the values makes its block's sum NaN.
DLF_CPU_KERNEL(exp_weights, const float* values, int64_t count, float peak, float scale, float* weights,
               double* block_sums);

// Zeroes the weights that the rule does not keep, and sums the others per block.
DLF_CPU_KERNEL(keep_weights, const float* values, int64_t count, const KeepRule& rule, float* weights,
               double* block_sums);

// Writes the values whose tokens a mask allows, and -inf in place of the others.
DLF_CPU_KERNEL(mask_values, const float* values, int64_t count, const int32_t* mask, float* masked);

// Writes bands[i] = the whole part of (peak - values[i]) * scale, at most kBands - 1.
inline constexpr int kBands = 1024;
DLF_CPU_KERNEL(score_bands, const float* values, int64_t count, float peak, float scale, uint16_t* bands);

}  // namespace dlf
