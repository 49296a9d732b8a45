#pragma once

#include "ops/matrix.h"
#include "ops/tensor_core_cuda.h"

// How each type of weights comes from memory to the tensor cores.
//
// A warp takes 16 output channels, kStage inputs at a time, in two halves of 32. A lane (g = lane / 4, t = lane % 4)
// owns two of the channels and, in each half, the eight inputs from 8t on, of W and of x alike. That is not the order
// of inputs that the instruction thinks of, but a sum has no order of its own; so both come from memory 16 bytes at a
// time, or 8, straight into the registers where they are needed.
namespace dlf::cuda {

using ops::Matrix;

inline constexpr int kStage = 64;
inline constexpr int kHalf = kStage / 2;

struct Lane {
  int group;   // g: owns channels group and group + 8, or 2 group and 2 group + 1; and column `group` of x
  int member;  // t

  __device__ explicit Lane(unsigned thread)
      : group(static_cast<int>(thread % kWarp / 4)), member(static_cast<int>(thread % 4)) {}

  // Where a lane's first eight inputs of a half must begin before, to be inside.
  __device__ int end(int64_t in) const { return static_cast<int>(in) - 8 * member; }
};

// Reads what is read once only and need not stay in a cache.
template <typename T>
__device__ T stream(const void* from) {
  return __ldcs(static_cast<const T*>(from));
}

// float16 and bfloat16, row by row. `in` must be a multiple of 8.
template <typename T>
class RowWeights {
 public:
  static constexpr int kAhead = 2;  // stages on their way: 64 bytes each
  struct Stage {
    uint4 at[2][2];  // [half][channel]
  };

  __device__ RowWeights(const Matrix& matrix, int tile, Lane lane) : end_(lane.end(matrix.in)) {
    for (int i = 0; i < 2; ++i) {
      // Beyond the last channel stands the last one again; nobody writes its sum.
      const int64_t channel = min(static_cast<int64_t>(tile) * ops::kTileOutputs + channel_of(lane, i), matrix.out - 1);
      row_[i] = static_cast<const T*>(matrix.data) + channel * matrix.in + 8 * lane.member;
    }
  }

  __device__ static int channel_of(Lane lane, int index) { return lane.group + 8 * index; }
  __device__ static float scale(const Matrix&, int64_t) { return 1.0F; }

  // The inputs from `first` on. What lies beyond the last stays as it is: x is zero there.
  __device__ void load(int first, Stage& stage) const {
    const T* from[2] = {row_[0] + first, row_[1] + first};
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      if (first < end_ - half * kHalf) {
        stage.at[half][0] = stream<uint4>(from[0] + half * kHalf);
        stage.at[half][1] = stream<uint4>(from[1] + half * kHalf);
      }
    }
  }

  __device__ void multiply(const Stage& stage, int half, const uint4& x, float (&sums)[4]) const {
    const uint4& low = stage.at[half][0];
    const uint4& high = stage.at[half][1];
    multiply_add<T>(sums, {low.x, high.x, low.y, high.y}, x.x, x.y);
    multiply_add<T>(sums, {low.z, high.z, low.w, high.w}, x.z, x.w);
  }

 private:
  const T* row_[2];
  int end_;
};

// int8 tiles: a lane's two channels lie side by side, four inputs of each. Every value is exact in 16 bits.
template <typename T>
class Int8Weights {
 public:
  static constexpr int kAhead = 3;
  struct Stage {
    uint2 at[2][2];  // [half][first or second four of the eight inputs], the two channels
  };

  __device__ Int8Weights(const Matrix& matrix, int tile, Lane lane)
      : data_(static_cast<const char*>(matrix.data) +
              tile * ops::padded_inputs(matrix.in, matrix.group) * ops::kTileOutputs + lane.member * 128 +
              lane.group * 8),
        end_(lane.end(matrix.in)) {}

  __device__ static int channel_of(Lane lane, int index) { return 2 * lane.group + index; }
  __device__ static float scale(const Matrix& matrix, int64_t channel) {
    return static_cast<const float*>(matrix.scale)[channel];
  }

  __device__ void load(int first, Stage& stage) const {
    const char* from = data_ + static_cast<int64_t>(first) * ops::kTileOutputs;
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      if (first < end_ - half * kHalf) {
        stage.at[half][0] = stream<uint2>(from + half * kHalf * ops::kTileOutputs);
        stage.at[half][1] = stream<uint2>(from + half * kHalf * ops::kTileOutputs + 64);
      }
    }
  }

  __device__ void multiply(const Stage& stage, int half, const uint4& x, float (&sums)[4]) const {
    multiply_quad(stage.at[half][0], x.x, x.y, sums);
    multiply_quad(stage.at[half][1], x.z, x.w, sums);
  }

 private:
  __device__ static void multiply_quad(const uint2& bytes, uint32_t x0, uint32_t x1, float (&sums)[4]) {
    uint32_t first[2];
    uint32_t second[2];
    widen(bytes.x, first);
    widen(bytes.y, second);
    multiply_add<T>(sums, {first[0], second[0], first[1], second[1]}, x0, x1);
  }

  // Four signed bytes as two pairs. A byte put into the low bits of a float of a suitable exponent adds its value,
  // which is made positive for that: value + 128.
  __device__ static void widen(uint32_t bytes, uint32_t (&pairs)[2]) {
    const uint32_t positive = bytes ^ 0x80808080U;
    if constexpr (std::is_same_v<T, __nv_bfloat16>) {
      // bfloat16 has one bit too few for this, so it goes by float32, whose upper half it is.
      constexpr uint32_t kExponent = 0x4b000000U;  // 2^23
      constexpr float kOffset = 8388608.0F + 128.0F;
      uint32_t values[4];
#pragma unroll
      for (uint32_t i = 0; i < 4; ++i) {
        values[i] = __float_as_uint(__uint_as_float(__byte_perm(positive, kExponent, 0x7650U + i)) - kOffset);
      }
      pairs[0] = __byte_perm(values[0], values[1], 0x7632U);
      pairs[1] = __byte_perm(values[2], values[3], 0x7632U);
    } else {
      constexpr uint32_t kExponent = 0x64646464U;  // 1024, by its upper byte
      constexpr uint32_t kOffset = 0x64806480U;    // 1024 + 128, twice
      pairs[0] = subtract<T>(__byte_perm(positive, kExponent, 0x4140U), kOffset);
      pairs[1] = subtract<T>(__byte_perm(positive, kExponent, 0x4342U), kOffset);
    }
  }

  const char* data_;
  int end_;
};

// int4 tiles: a lane's two channels lie side by side, eight inputs of each.
template <typename T>
class Int4Weights {
 public:
  static constexpr int kAhead = 4;
  struct Stage {
    uint2 at[2];        // [half], the two channels
    uint32_t scale[2];  // [half], bfloat16, of the two channels
  };

  __device__ Int4Weights(const Matrix& matrix, int tile, Lane lane)
      : end_(lane.end(matrix.in)),
        in_(static_cast<int>(matrix.in)),
        scale_shift_(matrix.group == kStage ? 1 : 0),
        half_scale_(matrix.group == kStage ? 0 : kGroupBytes) {
    const int64_t padded = ops::padded_inputs(matrix.in, matrix.group);
    data_ = static_cast<const char*>(matrix.data) + tile * padded * (ops::kTileOutputs / 2) + lane.member * 64 +
            lane.group * 8;
    scale_ = static_cast<const char*>(matrix.scale) + tile * (padded / matrix.group) * kGroupBytes + lane.group * 4;
  }

  __device__ static int channel_of(Lane lane, int index) { return 2 * lane.group + index; }
  __device__ static float scale(const Matrix&, int64_t) { return 1.0F; }

  __device__ void load(int first, Stage& stage) const {
    const char* from = data_ + static_cast<int64_t>(first) * (ops::kTileOutputs / 2);
    const char* scale = scale_ + (first >> scale_shift_);
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      if (first < end_ - half * kHalf) {
        stage.at[half] = stream<uint2>(from + half * kHalf * (ops::kTileOutputs / 2));
      }
      if (first < in_ - half * kHalf) {
        stage.scale[half] = stream<uint32_t>(scale + half * half_scale_);
      }
    }
  }

  __device__ void multiply(const Stage& stage, int half, const uint4& x, float (&sums)[4]) const {
    uint32_t first[4];
    uint32_t second[4];
    widen(stage.at[half].x, first);
    widen(stage.at[half].y, second);
    float part[4] = {0.0F, 0.0F, 0.0F, 0.0F};
    multiply_add<T>(part, {first[0], second[0], first[1], second[1]}, __byte_perm(x.x, x.y, 0x5410U),
                    __byte_perm(x.x, x.y, 0x7632U));
    multiply_add<T>(part, {first[2], second[2], first[3], second[3]}, __byte_perm(x.z, x.w, 0x5410U),
                    __byte_perm(x.z, x.w, 0x7632U));
    const float scales[2] = {__uint_as_float(stage.scale[half] << 16),
                             __uint_as_float(stage.scale[half] & 0xffff0000U)};
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      sums[i] = fmaf(part[i], scales[i / 2], sums[i]);
    }
  }

 private:
  // Eight values + 8 as four pairs: of inputs 0 and 2, 1 and 3, 4 and 6, 5 and 7. The bits of a value, put below a
  // suitable exponent, add to its power of two.
  __device__ static void widen(uint32_t word, uint32_t (&pairs)[4]) {
    constexpr bool kIsBFloat16 = std::is_same_v<T, __nv_bfloat16>;
    constexpr uint32_t kExponent = kIsBFloat16 ? 0x43004300U : 0x64006400U;  // 128 or 1024
    constexpr uint32_t kOffset = kExponent + 0x00080008U;
    constexpr int kShifts[4] = {0, 8, 4, 12};
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      pairs[i] = subtract<T>(put_bits<0x000f000fU, kExponent>(word >> kShifts[i]), kOffset);
    }
  }

  static constexpr int kGroupBytes = 2 * ops::kTileOutputs;  // of the scales of a tile's group

  const char* data_;
  const char* scale_;
  int end_;
  int in_;
  int scale_shift_;  // a scale's bytes, 32 of a group, are one for each input, or half of one
  int half_scale_;   // bytes between the scales of a stage's halves
};

}  // namespace dlf::cuda
