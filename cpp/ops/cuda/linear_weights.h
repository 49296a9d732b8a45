#pragma once

#include "ops/cuda/tensor_core.h"
#include "ops/matrix.h"

// How each type of weights gets from memory to the tensor cores.
//
// A warp takes a tile of 16 output channels, kStage inputs at a time, in two halves of 32. A lane (g = lane / 4, t =
// lane % 4) owns two of the channels and, in each half, the eight inputs from 8t on, of W and of x alike. The
// instruction numbers the inputs in another order, but any order will do that W and x share; so both come from memory
// 16 bytes at a time, or 8, straight into the registers where they are needed.
namespace dlf::cuda {

using ops::Matrix;

inline constexpr int kStage = 64;
inline constexpr int kHalf = kStage / 2;

struct Lane {
  int group;   // g: owns channels group and group + 8, or 2 group and 2 group + 1; and column `group` of x
  int member;  // t

  __device__ explicit Lane(unsigned thread)
      : group(static_cast<int>(thread % kWarp / 4)), member(static_cast<int>(thread % 4)) {}

  // A lane's eight inputs of a stage's first half exist if the stage begins before this.
  __device__ int end(int64_t in) const { return static_cast<int>(in) - 8 * member; }
};

// Reads what is read once only and need not stay in a cache.
template <typename T>
__device__ T stream(const void* from) {
  return __ldcs(static_cast<const T*>(from));
}

// Converts four bytes, value + 128 each, to two pairs. A byte put into the low bits of a float of a suitable exponent
// adds its value, which is why it must be positive.
template <typename T>
__device__ void widen_bytes(uint32_t positive, uint32_t (&pairs)[2]) {
  if constexpr (std::is_same_v<T, __nv_bfloat16>) {
    // bfloat16 has one bit too few for this, so it is the upper half of a float32 made this way.
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
inline constexpr uint32_t kSigns = 0x80808080U;  // turns four signed bytes into value + 128

// float16 and bfloat16, row by row. `in` must be a multiple of 8.
template <typename T>
class RowWeights {
 public:
  static constexpr int kAhead = 4;           // stages in flight: 64 bytes each
  static constexpr int kTiles = 1;           // tiles per warp
  static constexpr int kWarps = 16;          // warps per multiprocessor that must have registers
  static constexpr bool kUnchecked = false;  // whether rounds inside the matrix get a loop without checks
  struct Stage {
    uint4 at[2][2];  // [half][channel]
  };

  __device__ RowWeights(const Matrix& matrix, int tile, Lane lane) : end_(lane.end(matrix.in)) {
    for (int i = 0; i < 2; ++i) {
      // Channels beyond the last repeat it; their sums are not written.
      const int64_t channel = min(static_cast<int64_t>(tile) * ops::kTileOutputs + channel_of(lane, i), matrix.out - 1);
      row_[i] = static_cast<const T*>(matrix.data) + channel * matrix.in + 8 * lane.member;
    }
  }

  __device__ static int channel_of(Lane lane, int index) { return lane.group + 8 * index; }
  __device__ static float scale(const Matrix&, int64_t) { return 1.0F; }

  // Loads the inputs from `first` on. Unless Inside, inputs beyond the last stay as they are: x is zero there.
  template <bool Inside>
  __device__ void load(int first, Stage& stage) const {
    const T* from[2] = {row_[0] + first, row_[1] + first};
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      if (Inside || first < end_ - half * kHalf) {
        stage.at[half][0] = stream<uint4>(from[0] + half * kHalf);
        stage.at[half][1] = stream<uint4>(from[1] + half * kHalf);
      }
    }
  }

  __device__ static void multiply(const Stage& stage, int half, const uint4& x, float (&sums)[4]) {
    const uint4& low = stage.at[half][0];
    const uint4& high = stage.at[half][1];
    multiply_add<T>(sums, {low.x, high.x, low.y, high.y}, x.x, x.y);
    multiply_add<T>(sums, {low.z, high.z, low.w, high.w}, x.z, x.w);
  }

 private:
  const T* row_[2];
  int end_;
};

// int8 tiles with a scale for each channel: a lane's two channels lie side by side, four inputs of each. Every value is
// exact in 16 bits.
template <typename T>
class Int8Weights {
 public:
  static constexpr int kAhead = 3;
  static constexpr int kTiles = 1;
  static constexpr int kWarps = 32;
  static constexpr bool kUnchecked = false;
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

  template <bool Inside>
  __device__ void load(int first, Stage& stage) const {
    const char* from = data_ + static_cast<int64_t>(first) * ops::kTileOutputs;
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      if (Inside || first < end_ - half * kHalf) {
        stage.at[half][0] = stream<uint2>(from + half * kHalf * ops::kTileOutputs);
        stage.at[half][1] = stream<uint2>(from + half * kHalf * ops::kTileOutputs + 64);
      }
    }
  }

  __device__ static void multiply(const Stage& stage, int half, const uint4& x, float (&sums)[4]) {
    multiply_quad(stage.at[half][0], x.x, x.y, sums);
    multiply_quad(stage.at[half][1], x.z, x.w, sums);
  }

 private:
  __device__ static void multiply_quad(const uint2& bytes, uint32_t x0, uint32_t x1, float (&sums)[4]) {
    uint32_t first[2];
    uint32_t second[2];
    widen_bytes<T>(bytes.x ^ kSigns, first);
    widen_bytes<T>(bytes.y ^ kSigns, second);
    multiply_add<T>(sums, {first[0], second[0], first[1], second[1]}, x0, x1);
  }

  const char* data_;
  int end_;
};

// int4 tiles with a bfloat16 scale for each group, two at a time: lanes with g < 4 take the first, the others the
// second; each takes four neighbouring channels and eight inputs of each.
template <typename T, int Group>
class Int4Weights {
 public:
  static constexpr int kAhead = 2;
  static constexpr int kTiles = 2;
  static constexpr int kWarps = 24;
  static constexpr bool kUnchecked = true;
  static constexpr int kScales = kStage / Group;  // per channel and stage
  struct Stage {
    uint4 at[2];           // [half], the four channels
    uint2 scale[kScales];  // bfloat16, of the four channels
  };

  __device__ Int4Weights(const Matrix& matrix, int tile, Lane lane)
      : end_(lane.end(matrix.in)), in_(static_cast<int>(matrix.in)) {
    const int64_t padded = ops::padded_inputs(matrix.in, Group);
    // Tiles beyond the last repeat it; their sums are not written.
    const int64_t own = min(tile + lane.group / 4, static_cast<int>(ops::tiles(matrix.out)) - 1);
    const int quad = lane.group % 4;
    data_ =
        static_cast<const char*>(matrix.data) + own * padded * (ops::kTileOutputs / 2) + lane.member * 64 + quad * 16;
    scale_ = static_cast<const char*>(matrix.scale) + own * (padded / Group) * kGroupBytes + quad * 8;
  }

  __device__ static int channel_of(Lane lane, int index) {
    return lane.group / 4 * static_cast<int>(ops::kTileOutputs) + lane.group % 4 * 4 + index;
  }
  __device__ static float scale(const Matrix&, int64_t) { return 1.0F / (1 << kBit); }

  template <bool Inside>
  __device__ void load(int first, Stage& stage) const {
    const char* from = data_ + static_cast<int64_t>(first) * (ops::kTileOutputs / 2);
    const char* scale = scale_ + first / Group * kGroupBytes;
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      if (Inside || first < end_ - half * kHalf) {
        stage.at[half] = stream<uint4>(from + half * kHalf * (ops::kTileOutputs / 2));
      }
      if (half < kScales && (Inside || first < in_ - half * Group)) {
        stage.scale[half] = stream<uint2>(scale + half * kGroupBytes);
      }
    }
  }

  // The tensor cores multiply the results of widen(). The offset that it adds, the same for every channel, is taken out
  // of the sum from the start.
  __device__ static void multiply(const Stage& stage, int half, const uint4& x, float (&sums)[4 * kTiles]) {
    const uint32_t inputs[4] = {__byte_perm(x.x, x.y, 0x5410U), __byte_perm(x.x, x.y, 0x7632U),
                                __byte_perm(x.z, x.w, 0x5410U), __byte_perm(x.z, x.w, 0x7632U)};
    constexpr uint32_t kMinus = 0x80008000U | kExponent | kZero << kBit;
    constexpr uint32_t kOffsets[4] = {kMinus, kMinus, kMinus, kMinus};
    float offset[4] = {0.0F, 0.0F, 0.0F, 0.0F};
    multiply_add<T>(offset, kOffsets, inputs[0], inputs[1]);
    multiply_add<T>(offset, kOffsets, inputs[2], inputs[3]);
    const uint32_t words[4] = {stage.at[half].x, stage.at[half].y, stage.at[half].z, stage.at[half].w};
    const uint2& four = stage.scale[half % kScales];
    const uint32_t scales[2] = {four.x, four.y};
#pragma unroll
    for (int pair = 0; pair < 2; ++pair) {
      uint32_t first[4];
      uint32_t second[4];
      widen(words[2 * pair], first);
      widen(words[2 * pair + 1], second);
      float part[4] = {offset[0], offset[1], offset[2], offset[3]};
      multiply_add<T>(part, {first[0], second[0], first[1], second[1]}, inputs[0], inputs[1]);
      multiply_add<T>(part, {first[2], second[2], first[3], second[3]}, inputs[2], inputs[3]);
      const float scale[2] = {__uint_as_float(scales[pair] << 16), __uint_as_float(scales[pair] & 0xffff0000U)};
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        sums[4 * pair + i] = fmaf(part[i], scale[i / 2], sums[4 * pair + i]);
      }
    }
  }

 private:
  static constexpr bool kIsBFloat16 = std::is_same_v<T, __nv_bfloat16>;
  static constexpr uint32_t kExponent = kIsBFloat16 ? 0x43004300U : 0x64006400U;  // 128 or 1024
  static constexpr int kBit = kIsBFloat16 ? 3 : 6;  // mantissa bit of a value's lowest bit: as high as possible
  static constexpr uint32_t kZero = 0x00080008U;    // zero as it is stored
  static constexpr int kGroupBytes = 2 * ops::kTileOutputs;  // scales of one group of a tile

  // Converts eight stored values (value + 8) to four pairs: of inputs 0 and 2, 1 and 3, 4 and 6, 5 and 7. The bits of a
  // value in the mantissa add 2^kBit times the value to the power of two of the exponent.
  __device__ static void widen(uint32_t word, uint32_t (&pairs)[4]) {
    constexpr int kPlaces[4] = {0, 8, 4, 12};
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const int right = kPlaces[i] - kBit;
      pairs[i] = put_bits<(0x000f000fU << kBit), kExponent>(right < 0 ? word << -right : word >> right);
    }
  }

  const char* data_;
  const char* scale_;
  int end_;
  int in_;
};

}  // namespace dlf::cuda
