#include "ops/cpu/quantize.h"
#include "ops/cpu/rounding.h"

// Handles the 16 channels of a tile side by side: the compiler makes one vector operation of each loop over them.
namespace dlf::ops::DLF_CPU {
namespace {

constexpr float kLowest = -8.0F;  // of int4
constexpr float kHighest = 7.0F;
constexpr int64_t kLanes = kTileOutputs;

struct Lanes {
  float at[kLanes];
};

// Nearest integer, as a float, of a value of at most 2²².
inline float nearest(float value) { return value + 12582912.0F - 12582912.0F; }

// 1 / scale, and 0 for a scale of 0.
inline float inverse_of(float scale) { return magnitude(scale) < kLeast ? 0.0F : 1.0F / scale; }

inline float clamped(float value) {
  value = value < kLowest ? kLowest : value;
  return value > kHighest ? kHighest : value;
}

// The weight of largest magnitude of each channel.
Lanes extremes(const float* weight, int64_t count) {
  Lanes extreme = {};
  for (int64_t i = 0; i < count; ++i) {
    for (int64_t lane = 0; lane < kLanes; ++lane) {
      const float value = weight[i * kLanes + lane];
      extreme.at[lane] = magnitude(value) > magnitude(extreme.at[lane]) ? value : extreme.at[lane];
    }
  }
  return extreme;
}

// Searches the scales of a group of int4 weights: keeps the offered ones that leave the least squared error.
class ScaleSearch {
 public:
  ScaleSearch(const float* weight, int64_t count) : weight_(weight), count_(count) {
    for (int64_t lane = 0; lane < kLanes; ++lane) {
      best_.at[lane] = 0.0F;
      least_.at[lane] = __builtin_huge_valf();
      better_.at[lane] = 0.0F;
    }
  }

  void offer(const Lanes& scales) {
    Lanes scale;
    Lanes inverse;
    Lanes error = {};
    Lanes product = {};
    Lanes square = {};
    for (int64_t lane = 0; lane < kLanes; ++lane) {
      scale.at[lane] = from_bfloat16(to_bfloat16(scales.at[lane]));
      inverse.at[lane] = inverse_of(scale.at[lane]);
    }
    for (int64_t i = 0; i < count_; ++i) {
      for (int64_t lane = 0; lane < kLanes; ++lane) {
        const float weight = weight_[i * kLanes + lane];
        const float value = clamped(nearest(weight * inverse.at[lane]));
        const float rest = weight - scale.at[lane] * value;
        error.at[lane] += rest * rest;
        product.at[lane] += weight * value;
        square.at[lane] += value * value;
      }
    }
    for (int64_t lane = 0; lane < kLanes; ++lane) {
      const bool wins = error.at[lane] < least_.at[lane];
      least_.at[lane] = wins ? error.at[lane] : least_.at[lane];
      best_.at[lane] = wins ? scale.at[lane] : best_.at[lane];
      better_.at[lane] = wins && square.at[lane] > 0.0F ? product.at[lane] / square.at[lane] : better_.at[lane];
    }
  }

  const Lanes& best() const { return best_; }
  // Least-squares scales for the rounded values of best().
  const Lanes& better() const { return better_; }

 private:
  const float* weight_;  // [count, kLanes]
  int64_t count_;
  Lanes best_;
  Lanes least_;
  Lanes better_;
};

// The extreme weight becomes −8, which has no positive counterpart, so a scale may be negative. A somewhat smaller
// scale clips that weight and serves the others better.
Lanes choose_scales(const float* weight, int64_t count) {
  constexpr float kSteps[] = {-8.0F, -7.5F, -7.0F, 7.0F, 7.5F, -8.7F, -9.5F, 8.3F};  // divisors of the extreme
  const Lanes extreme = extremes(weight, count);
  ScaleSearch search(weight, count);
  for (const float step : kSteps) {
    Lanes scales;
    for (int64_t lane = 0; lane < kLanes; ++lane) {
      scales.at[lane] = extreme.at[lane] / step;
    }
    search.offer(scales);
  }
  search.offer(search.better());
  search.offer(search.better());
  return search.best();
}

}  // namespace

void quantize_int8_kernel(const QuantizeArgs& args) {
  auto* data = static_cast<int8_t*>(args.data);
  const Lanes extreme = extremes(args.weight, args.in);
  Lanes inverse;
  for (int64_t lane = 0; lane < kLanes; ++lane) {
    const float largest = magnitude(extreme.at[lane]);
    static_cast<float*>(args.scale)[lane] = largest < kLeast ? 0.0F : largest / 127.0F;
    inverse.at[lane] = largest < kLeast ? 0.0F : 127.0F / largest;
  }
  for (int64_t i = 0; i < args.in; ++i) {
    for (int64_t lane = 0; lane < kLanes; ++lane) {
      data[i / 4 * 64 + lane * 4 + i % 4] =
          static_cast<int8_t>(nearest(args.weight[i * kLanes + lane] * inverse.at[lane]));
    }
  }
}

void quantize_int4_kernel(const QuantizeArgs& args) {
  auto* data = static_cast<uint8_t*>(args.data);
  auto* scales = static_cast<uint16_t*>(args.scale);
  for (int64_t group = 0; group < args.in / args.group; ++group) {
    const float* weight = args.weight + group * args.group * kLanes;
    const Lanes scale = choose_scales(weight, args.group);
    Lanes inverse;
    for (int64_t lane = 0; lane < kLanes; ++lane) {
      scales[group * kLanes + lane] = to_bfloat16(scale.at[lane]);
      inverse.at[lane] = inverse_of(scale.at[lane]);
    }
    const auto value = [&](int64_t i, int64_t lane) {
      return static_cast<int32_t>(clamped(nearest(weight[i * kLanes + lane] * inverse.at[lane])) - kLowest);
    };
    for (int64_t i = 0; i < args.group; i += 8) {
      uint8_t* to = data + (group * args.group + i) * kLanes / 2;
      for (int64_t j = 0; j < 4; ++j) {
        for (int64_t lane = 0; lane < kLanes; ++lane) {
          to[lane * 4 + j] = static_cast<uint8_t>(value(i + j, lane) | value(i + j + 4, lane) << 4);
        }
      }
    }
  }
}

}  // namespace dlf::ops::DLF_CPU
