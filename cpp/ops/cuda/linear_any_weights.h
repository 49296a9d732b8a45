#pragma once

#include "ops/cuda/linear_weights.h"

// Integer weights with scales of every kind that matrix.h describes; linear_weights.h has the most frequent kinds,
// which are decoded with fewer instructions.
namespace dlf::cuda {

// Numbers of a lane's two channels for 32 inputs, as stored: floats, pairs of 16 bits, or pairs of bytes.
struct RawScale {
  uint2 fine[2];  // of 16 inputs each, if a group has so many
  uint32_t coarse;
};

// Scales or minimums of a tile, for a lane that owns channels 2g and 2g + 1.
class ScaleReader {
 public:
  ScaleReader() = default;
  __device__ ScaleReader(const Matrix& matrix, int tile, Lane lane, const void* fine, const void* coarse, bool bytes)
      : kind_(bytes || coarse != nullptr             ? Kind::bytes
              : matrix.scale_type == DType::float32  ? Kind::float32
              : matrix.scale_type == DType::bfloat16 ? Kind::bfloat16
                                                     : Kind::float16),
        shift_(ops::shift_of(matrix.group)),
        block_shift_(ops::shift_of(matrix.block)),
        fine_(static_cast<const char*>(fine) +
              (tile * ops::groups(matrix) * ops::kTileOutputs + 2 * lane.group) * width()),
        coarse_(coarse == nullptr
                    ? nullptr
                    : static_cast<const char*>(coarse) +
                          (tile * (ops::padded_inputs(matrix) / matrix.block) * ops::kTileOutputs + 2 * lane.group) *
                              2) {}

  // Loads those of 32 inputs from `first` on.
  __device__ void load(int first, RawScale& raw) const {
    raw.fine[0] = load_fine(first >> shift_);
    if (shift_ == kHalfShift) {
      raw.fine[1] = load_fine((first >> shift_) + 1);
    }
    if (coarse_ != nullptr) {
      raw.coarse = stream<uint32_t>(coarse_ + static_cast<int64_t>(first >> block_shift_) * 2 * ops::kTileOutputs);
    }
  }

  // Number of channel 2g + `index`, for the first or second 16 inputs if a group has so many.
  __device__ float value(const RawScale& raw, int part, int index) const {
    const uint2& fine = raw.fine[part];
    switch (kind_) {
      case Kind::float32:
        return __uint_as_float(index == 0 ? fine.x : fine.y);
      case Kind::bfloat16:
        return to_float(half_of<__nv_bfloat16>(fine.x, index));
      case Kind::float16:
        return to_float(half_of<__half>(fine.x, index));
      default: {
        const auto byte = static_cast<float>(static_cast<int8_t>(fine.x >> (8 * index)));
        return coarse_ == nullptr ? byte : byte * to_float(half_of<__half>(raw.coarse, index));
      }
    }
  }

 private:
  enum class Kind : int8_t { float32, bfloat16, float16, bytes };
  static constexpr int kHalfShift = ops::shift_of(ops::kHalfGroup);

  __device__ int64_t width() const { return kind_ == Kind::float32 ? 4 : kind_ == Kind::bytes ? 1 : 2; }

  __device__ uint2 load_fine(int group) const {
    const char* from = fine_ + static_cast<int64_t>(group) * ops::kTileOutputs * width();
    switch (kind_) {
      case Kind::float32:
        return stream<uint2>(from);
      case Kind::bytes:
        return {stream<uint16_t>(from), 0};
      default:
        return {stream<uint32_t>(from), 0};
    }
  }

  Kind kind_ = Kind::float32;
  int shift_ = 0;
  int block_shift_ = 0;
  const char* fine_ = nullptr;
  const char* coarse_ = nullptr;
};

// Each type of values loads a lane's eight inputs of two channels, and returns four of one as bytes, value + 128. They
// are of the channels 2g and 2g + 1, which lie side by side.
struct Int8Values {
  static constexpr int kWords = 2;
  static constexpr int kHalfBytes = kHalf * ops::kTileOutputs;

  __device__ static void load(const char* half, Lane lane, uint2 (&words)[kWords]) {
    const char* from = half + lane.member * 128 + lane.group * 8;
    words[0] = stream<uint2>(from);
    words[1] = stream<uint2>(from + 64);
  }
  __device__ static uint32_t bytes(const uint2 (&words)[kWords], Lane, int channel, int quad, bool) {
    return (channel == 0 ? words[quad].x : words[quad].y) ^ kSigns;
  }
};

struct Int4Values {
  static constexpr int kWords = 1;
  static constexpr int kHalfBytes = kHalf * ops::kTileOutputs / 2;

  __device__ static void load(const char* half, Lane lane, uint2 (&words)[kWords]) {
    words[0] = stream<uint2>(half + lane.member * 64 + lane.group * 8);
  }
  __device__ static uint32_t bytes(const uint2 (&words)[kWords], Lane, int channel, int quad, bool centred) {
    const uint32_t word = (channel == 0 ? words[0].x : words[0].y) >> (4 * quad);
    return (word & 0x0f0f0f0fU) + (centred ? kSigns - 0x08080808U : kSigns);
  }
};

struct Int6Values {
  static constexpr int kWords = 3;
  static constexpr int kHalfBytes = kHalf * ops::kTileOutputs * 6 / 8;

  __device__ static void load(const char* half, Lane lane, uint2 (&words)[kWords]) {
    const char* from = half + lane.group * 8;
    const int pair = lane.member % 2;  // of the registers with the low bits
    words[0] = stream<uint2>(from + 128 * pair);
    words[1] = stream<uint2>(from + 128 * pair + 64);
    words[2] = stream<uint2>(from + 256 + 64 * pair);
  }
  __device__ static uint32_t bytes(const uint2 (&words)[kWords], Lane lane, int channel, int quad, bool centred) {
    const bool upper = lane.member >= 2;  // inputs 16 .. 31
    const uint32_t low = (channel == 0 ? words[quad].x : words[quad].y) >> (upper ? 4 : 0);
    const uint32_t high = (channel == 0 ? words[2].x : words[2].y) >> (4 * quad + (upper ? 2 : 0));
    return ((low & 0x0f0f0f0fU) | (high & 0x03030303U) << 4) + (centred ? kSigns - 0x20202020U : kSigns);
  }
};

// The sums of a group are exact integers times x; scales and minimums multiply them in float32. Groups of 16 inputs are
// those of two lanes each, so their product is made twice, with x of the other lanes zero.
template <typename T, typename Values>
class AnyWeights {
 public:
  static constexpr int kAhead = 2;
  static constexpr int kTiles = 1;
  static constexpr int kWarps = 16;
  static constexpr bool kUnchecked = false;
  struct Stage {
    uint2 words[2][Values::kWords];  // [half]
    RawScale scale[2];
    RawScale minimum[2];
  };

  __device__ AnyWeights(const Matrix& matrix, int tile, Lane lane)
      : lane_(lane),
        origin_(matrix.origin),
        halves_(matrix.group == ops::kHalfGroup),
        in_(static_cast<int>(matrix.in)),
        data_(static_cast<const char*>(matrix.data) + tile * (ops::padded_inputs(matrix) / kHalf) * Values::kHalfBytes),
        scale_(matrix, tile, lane, matrix.scale, matrix.block_scale, false) {
    if (origin_ != ops::Origin::middle) {
      minimum_ = ScaleReader(matrix, tile, lane, matrix.minimum, matrix.block_minimum, origin_ == ops::Origin::zero);
    }
  }

  __device__ static int channel_of(Lane lane, int index) { return 2 * lane.group + index; }
  __device__ static float scale(const Matrix&, int64_t) { return 1.0F; }

  template <bool Inside>
  __device__ void load(int first, Stage& stage) const {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int input = first + half * kHalf;
      if (Inside || input < in_) {
        Values::load(data_ + static_cast<int64_t>(input / kHalf) * Values::kHalfBytes, lane_, stage.words[half]);
        scale_.load(input, stage.scale[half]);
        if (origin_ != ops::Origin::middle) {
          minimum_.load(input, stage.minimum[half]);
        }
      }
    }
  }

  __device__ void multiply(const Stage& stage, int half, const uint4& x, float (&sums)[4]) const {
    uint32_t pairs[2][4];  // [channel]
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      uint32_t quad[2];
      widen_bytes<T>(Values::bytes(stage.words[half], lane_, i / 2, i % 2, origin_ == ops::Origin::middle), quad);
      pairs[i / 2][i % 2 * 2] = quad[0];
      pairs[i / 2][i % 2 * 2 + 1] = quad[1];
    }
    if (!halves_) {
      return add(stage, half, 0, pairs, x, sums);
    }
    const uint4 none = {};
    const bool upper = lane_.member >= 2;
    add(stage, half, 0, pairs, upper ? none : x, sums);
    add(stage, half, 1, pairs, upper ? x : none, sums);
  }

 private:
  __device__ void add(const Stage& stage, int half, int part, const uint32_t (&pairs)[2][4], const uint4& x,
                      float (&sums)[4]) const {
    float products[4] = {};
    multiply_add<T>(products, {pairs[0][0], pairs[1][0], pairs[0][1], pairs[1][1]}, x.x, x.y);
    multiply_add<T>(products, {pairs[0][2], pairs[1][2], pairs[0][3], pairs[1][3]}, x.z, x.w);
    float inputs[4] = {};  // Σx, in every row
    if (origin_ != ops::Origin::middle) {
      constexpr uint32_t kOne = std::is_same_v<T, __nv_bfloat16> ? 0x3f803f80U : 0x3c003c00U;
      multiply_add<T>(inputs, {kOne, kOne, kOne, kOne}, x.x, x.y);
      multiply_add<T>(inputs, {kOne, kOne, kOne, kOne}, x.z, x.w);
    }
#pragma unroll
    for (int channel = 0; channel < 2; ++channel) {
      const float scale = scale_.value(stage.scale[half], part, channel);
      float minimum = 0.0F;
      if (origin_ != ops::Origin::middle) {
        minimum = minimum_.value(stage.minimum[half], part, channel);
        minimum = origin_ == ops::Origin::zero ? -minimum * scale : minimum;
      }
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        float& sum = sums[2 * channel + i];
        sum = fmaf(products[2 * channel + i], scale, fmaf(inputs[2 * channel + i], minimum, sum));
      }
    }
  }

  Lane lane_;
  ops::Origin origin_;
  bool halves_;
  int in_;
  const char* data_;
  ScaleReader scale_;
  ScaleReader minimum_;
};

// Calls body.operator()<Weights>() with the type that reads a matrix; those of floats are of T.
template <typename T, typename Body>
void for_weights(const Matrix& matrix, Body&& body) {
  const bool plain = matrix.origin == ops::Origin::middle && matrix.block == 0;
  switch (matrix.type) {
    case ops::MatrixType::int8:
      return plain && matrix.group == 0 && matrix.scale_type == DType::float32
                 ? body.template operator()<Int8Weights<T>>()
                 : body.template operator()<AnyWeights<T, Int8Values>>();
    case ops::MatrixType::int6:
      return body.template operator()<AnyWeights<T, Int6Values>>();
    case ops::MatrixType::int4:
      if (!plain || matrix.scale_type != DType::bfloat16 || matrix.group < kHalf || matrix.group > kStage) {
        return body.template operator()<AnyWeights<T, Int4Values>>();
      }
      return matrix.group == kStage ? body.template operator()<Int4Weights<T, kStage>>()
                                    : body.template operator()<Int4Weights<T, kHalf>>();
    default:
      return body.template operator()<RowWeights<T>>();
  }
}

}  // namespace dlf::cuda
