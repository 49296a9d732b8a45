#include <bit>

#include "ops/quantize.h"

namespace dlf::ops::DLF_CPU {
namespace {

constexpr float kLeast = 1e-30F;  // of the largest weight that shares a scale, so that its reciprocal is finite
constexpr float kLowest = -8.0F;  // of int4
constexpr float kHighest = 7.0F;
constexpr int64_t kMostGroup = 64;

inline float magnitude(float value) { return std::bit_cast<float>(std::bit_cast<uint32_t>(value) & 0x7fffffffU); }

// The nearest integer, as a float, of a value of at most 2²².
inline float nearest(float value) { return value + 12582912.0F - 12582912.0F; }

inline uint16_t to_bfloat16(float value) {
  const auto bits = std::bit_cast<uint32_t>(value);
  return static_cast<uint16_t>((bits + 0x7fffU + ((bits >> 16) & 1U)) >> 16);
}
inline float from_bfloat16(uint16_t bits) { return std::bit_cast<float>(static_cast<uint32_t>(bits) << 16); }

inline float clamped(float value) {
  value = value < kLowest ? kLowest : value;
  return value > kHighest ? kHighest : value;
}

// What one scale makes of a group: its squared error, and the scale that suits the rounded values best.
struct Try {
  float error;
  float better;
};

Try try_scale(const float* weight, int64_t count, float scale) {
  const float inverse = 1.0F / scale;
  float errors[16] = {};
  float products[16] = {};
  float squares[16] = {};
  for (int64_t i = 0; i < count; i += 16) {
    for (int64_t j = 0; j < 16; ++j) {
      const float value = clamped(nearest(weight[i + j] * inverse));
      const float error = weight[i + j] - scale * value;
      errors[j] += error * error;
      products[j] += weight[i + j] * value;
      squares[j] += value * value;
    }
  }
  float error = 0.0F;
  float product = 0.0F;
  float square = 0.0F;
  for (int64_t j = 0; j < 16; ++j) {
    error += errors[j];
    product += products[j];
    square += squares[j];
  }
  return {error, square > 0.0F ? product / square : scale};
}

// The scale of a group of int4 weights. The value of largest magnitude takes −8, which has no opposite, so the scale
// may be negative; a scale somewhat smaller cuts that value short and serves the others better.
float choose_scale(const float* weight, int64_t count) {
  float extreme = 0.0F;
  for (int64_t i = 0; i < count; ++i) {
    extreme = magnitude(weight[i]) > magnitude(extreme) ? weight[i] : extreme;
  }
  if (magnitude(extreme) < kLeast) {
    return 0.0F;
  }
  float best = 0.0F;
  float least = __builtin_huge_valf();
  const auto offer = [&](float scale) {
    scale = from_bfloat16(to_bfloat16(scale));
    const Try tried = try_scale(weight, count, scale);
    if (tried.error < least) {
      least = tried.error;
      best = scale;
    }
    return tried.better;
  };
  constexpr float kSteps[] = {-8.0F, -7.5F, -7.0F, 7.0F, 7.5F, -8.7F, -9.5F, 8.3F};  // what the extreme is divided by
  for (const float step : kSteps) {
    offer(extreme / step);
  }
  offer(offer(best));  // least squares for the values that the best one gives
  return best;
}

}  // namespace

void quantize_int8_kernel(const QuantizeArgs& args) {
  auto* data = static_cast<int8_t*>(args.data);
  for (int64_t channel = 0; channel < kTileOutputs; ++channel) {
    const float* weight = args.weight + channel * args.in;
    float largest = 0.0F;
    for (int64_t i = 0; i < args.in; ++i) {
      largest = magnitude(weight[i]) > largest ? magnitude(weight[i]) : largest;
    }
    const bool zero = largest < kLeast;
    static_cast<float*>(args.scale)[channel] = zero ? 0.0F : largest / 127.0F;
    const float inverse = zero ? 0.0F : 127.0F / largest;
    for (int64_t i = 0; i < args.in; ++i) {
      data[i / 4 * 64 + channel * 4 + i % 4] = static_cast<int8_t>(nearest(weight[i] * inverse));
    }
  }
}

void quantize_int4_kernel(const QuantizeArgs& args) {
  auto* data = static_cast<uint8_t*>(args.data);
  auto* scales = static_cast<uint16_t*>(args.scale);
  for (int64_t channel = 0; channel < kTileOutputs; ++channel) {
    for (int64_t group = 0; group < args.in / args.group; ++group) {
      const float* weight = args.weight + channel * args.in + group * args.group;
      const float scale = choose_scale(weight, args.group);
      scales[group * kTileOutputs + channel] = to_bfloat16(scale);
      const float inverse = scale == 0.0F ? 0.0F : 1.0F / scale;
      uint8_t values[kMostGroup];
      for (int64_t i = 0; i < args.group; ++i) {
        values[i] = static_cast<uint8_t>(clamped(nearest(weight[i] * inverse)) - kLowest);
      }
      for (int64_t i = 0; i < args.group; i += 8) {
        uint8_t* to = data + (group * args.group + i) / 8 * 64 + channel * 4;
        for (int64_t j = 0; j < 4; ++j) {
          to[j] = static_cast<uint8_t>(values[i + j] | values[i + j + 4] << 4);
        }
      }
    }
  }
}

}  // namespace dlf::ops::DLF_CPU
