#include <algorithm>
#include <bit>
#include <limits>

#include "sampling/cpu/sweep.h"

namespace dlf::DLF_CPU {
namespace {

constexpr int64_t kLanes = 16;  // the same on every instruction set, so that sums are added in the same order

// e^x for x <= 0 to about 1 ulp (Cephes' expf): e^x = 2^n e^r with |r| <= ln(2) / 2. NaN stays NaN.
inline float exp_nonpositive(float x) {
  const float clamped = x < -88.0f ? -88.0f : x;              // there n is -127, so that `power` is 0
  const float shifted = clamped * 1.44269504f + 12582912.0f;  // 1.5 * 2^23 leaves n in the low bits of the mantissa
  const float n = shifted - 12582912.0f;
  const float r = clamped - n * 0.693359375f + n * 2.12194440e-4f;
  float p = 1.9875691500e-4f;
  p = p * r + 1.3981999507e-3f;
  p = p * r + 8.3334519073e-3f;
  p = p * r + 4.1665795894e-2f;
  p = p * r + 1.6666665459e-1f;
  p = p * r + 5.0000001201e-1f;
  p = p * r * r + r + 1.0f;
  const float power = std::bit_cast<float>((std::bit_cast<uint32_t>(shifted) << 23) + (127u << 23));
  return p * power;
}

// Maps floats to integers of the same order (NaN at its ends), whose maximum vectorises: it does not depend on the
// order of the comparisons.
inline int32_t ordered(int32_t bits) { return bits ^ ((bits >> 31) & INT32_MAX); }

inline double sum(const float* values, int64_t count) {
  double lanes[kLanes] = {};
  int64_t i = 0;
  for (; i + kLanes <= count; i += kLanes) {
    for (int64_t lane = 0; lane < kLanes; ++lane) {
      lanes[lane] += values[i + lane];
    }
  }
  for (; i < count; ++i) {
    lanes[0] += values[i];
  }
  double total = 0;
  for (int64_t lane = 0; lane < kLanes; ++lane) {
    total += lanes[lane];
  }
  return total;
}

}  // namespace

void find_peak(const float* values, int64_t count, Peak* peak) {
  *peak = {0, -std::numeric_limits<float>::infinity()};
  for (int64_t begin = 0; begin < count; begin += kSamplingBlock) {
    const int64_t end = std::min(begin + kSamplingBlock, count);
    int32_t key = INT32_MIN;
    for (int64_t i = begin; i < end; ++i) {
      key = std::max(key, ordered(std::bit_cast<int32_t>(values[i])));
    }
    const float greatest = std::bit_cast<float>(ordered(key));
    if (greatest > peak->value) {
      *peak = {std::find(values + begin, values + end, greatest) - values, greatest};
    }
  }
}

void exp_weights(const float* values, int64_t count, float peak, float scale, float* weights, double* block_sums) {
  float block[kSamplingBlock];
  for (int64_t begin = 0; begin < count; begin += kSamplingBlock) {
    const int64_t size = std::min(kSamplingBlock, count - begin);
    float* out = weights == nullptr ? block : weights + begin;
    for (int64_t i = 0; i < size; ++i) {
      out[i] = exp_nonpositive((values[begin + i] - peak) * scale);
    }
    *block_sums++ = sum(out, size);
  }
}

void keep_weights(const float* values, int64_t count, const KeepRule& rule, float* weights, double* block_sums) {
  const KeepRule keep = rule;
  for (int64_t begin = 0; begin < count; begin += kSamplingBlock) {
    const int32_t size = static_cast<int32_t>(std::min(kSamplingBlock, count - begin));
    const int32_t index = static_cast<int32_t>(std::max<int64_t>(keep.index - begin, -1));
    const float* in = values + begin;
    float* out = weights + begin;
    for (int32_t i = 0; i < size; ++i) {
      const bool above = (in[i] > keep.score) | ((in[i] == keep.score) & (i <= index));
      out[i] = above & (out[i] >= keep.weight) ? out[i] : 0.0f;
    }
    *block_sums++ = sum(out, size);
  }
}

void mask_values(const float* values, int64_t count, const int32_t* mask, float* masked) {
  for (int64_t begin = 0; begin < count; begin += 32) {
    const uint32_t word = static_cast<uint32_t>(mask[begin / 32]);
    const int64_t end = std::min<int64_t>(begin + 32, count);
    for (int64_t i = begin; i < end; ++i) {
      masked[i] = (word >> (i - begin) & 1) != 0 ? values[i] : -std::numeric_limits<float>::infinity();
    }
  }
}

void score_bands(const float* values, int64_t count, float peak, float scale, uint16_t* bands) {
  for (int64_t i = 0; i < count; ++i) {
    const float band = (peak - values[i]) * scale;
    bands[i] = static_cast<uint16_t>(static_cast<int32_t>(band < kBands - 1 ? band : float{kBands - 1}));
  }
}

}  // namespace dlf::DLF_CPU
