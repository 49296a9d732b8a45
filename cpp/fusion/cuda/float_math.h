#pragma once

#include <cmath>

#include "support/cuda/launch.h"

// Numbers and functions of float32 that the sweeps share.
namespace dlf::cuda {

constexpr float kInfinity = HUGE_VALF;
constexpr float kLargest = 3.402823466e38F;
constexpr float kLog2E = 1.442695040888963F;

// 2^x, with subnormal results flushed to 0.
__device__ inline float exp2_fast(float x) {
#ifdef __CUDA_ARCH__
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
#else
  return exp2f(x);
#endif
}

// e^x − 1 to a few units in the last place; near 0 by its series.
__device__ inline float expm1_fast(float x) {
  float series = fmaf(x, 1.0F / 5040, 1.0F / 720);
  series = fmaf(x, series, 1.0F / 120);
  series = fmaf(x, series, 1.0F / 24);
  series = fmaf(x, series, 1.0F / 6);
  series = fmaf(x, series, 0.5F);
  series = fmaf(x * x, series, x);
  return fabsf(x) < 0.35F ? series : exp2_fast(x * kLog2E) - 1.0F;
}

__device__ inline float weight_of(float logit, float peak) { return exp2_fast((logit - peak) * kLog2E); }
// Replaces the peak of a block without tokens by 0.
__device__ inline float finite_peak(float peak) { return peak > -kInfinity ? peak : 0.0F; }

}  // namespace dlf::cuda
