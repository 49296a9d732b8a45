#include "ops/cpu/linear_input.h"
#include "ops/cpu/rounding.h"

// Plain loops that the compiler vectorises. Magnitudes are compared as integers, which have the order of the floats.
namespace dlf::ops::DLF_CPU {
namespace {

constexpr int32_t kInfinite = 0x7f800000;

// Integer nearest to a value of at most 2²²: adding 1.5·2²³ leaves it in the low bits.
inline int32_t nearest(float value) { return std::bit_cast<int32_t>(value + 12582912.0F) - 0x4b400000; }

// Returns the scale.
float quantize_group(const float* x, int8_t* value, int32_t* half_sum) {
  int32_t largest = 0;
  for (int64_t i = 0; i < kInputGroup; ++i) {
    const int32_t magnitude = std::bit_cast<int32_t>(x[i]) & 0x7fffffff;
    largest = magnitude > largest ? magnitude : largest;
  }
  const auto magnitude = std::bit_cast<float>(largest);
  float scale = magnitude < kLeast ? 0.0F : magnitude / 127.0F;
  scale = largest >= kInfinite ? std::bit_cast<float>(kInfinite + 1) : scale;  // a NaN, so that the product is one
  const float inverse = magnitude < kLeast ? 0.0F : 127.0F / magnitude;
  for (int64_t first = 0; first < kInputGroup; first += kHalfGroup) {
    int32_t total = 0;
#pragma GCC unroll 1  // an unrolled sum is not vectorised
    for (int64_t i = first; i < first + kHalfGroup; ++i) {
      const auto rounded = static_cast<int8_t>(nearest(x[i] * inverse));
      value[i] = rounded;
      total += rounded;
    }
    half_sum[first / kHalfGroup] = total;
  }
  return scale;
}

}  // namespace

void round_input_kernel(const LinearInputRows& input, int64_t begin, int64_t end) {
  for (int64_t row = begin; row < end; ++row) {
    const float* x = input.x + row * input.in;
    uint16_t* to = input.bfloat16 + row * input.stride;
    for (int64_t i = 0; i < input.in; ++i) {
      to[i] = to_bfloat16(x[i]);
    }
    for (int64_t i = input.in; i < input.stride; ++i) {
      to[i] = 0;
    }
  }
}

void quantize_input_kernel(const LinearInputRows& input, int64_t begin, int64_t end) {
  const int64_t groups = input.stride / kInputGroup;
  for (int64_t row = begin; row < end; ++row) {
    const float* x = input.x + row * input.in;
    int8_t* value = input.value + row * input.stride;
    for (int64_t group = 0; group < groups; ++group) {
      const int64_t first = group * kInputGroup;
      float padded[kInputGroup] = {};
      const float* from = x + first;
      if (first + kInputGroup > input.in) {
        for (int64_t i = 0; first + i < input.in; ++i) {
          padded[i] = from[i];
        }
        from = padded;
      }
      const int64_t index = row * groups + group;
      int32_t* half_sum = input.half_sums.value + 2 * index;
      const float scale = quantize_group(from, value + first, half_sum);
      input.scale[index] = scale;
      input.sums.value[index] = half_sum[0] + half_sum[1];
      input.sums.scaled[index] = scale * static_cast<float>(half_sum[0] + half_sum[1]);
      for (int64_t half = 0; half < 2; ++half) {
        input.half_sums.scaled[2 * index + half] = scale * static_cast<float>(half_sum[half]);
      }
    }
  }
}

}  // namespace dlf::ops::DLF_CPU
