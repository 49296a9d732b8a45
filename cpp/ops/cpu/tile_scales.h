#pragma once

#include "ops/cpu/tile_dot.h"

// Scales and minimums of a tile, 16 channels at a time. Local to the *_kernel.cc file and the instruction set that it
// is compiled for.
namespace dlf::ops::DLF_CPU {
namespace {

// One float32 scale for each channel.
class ChannelScales {
 public:
  static constexpr bool kPerGroup = false;
  static constexpr bool kHalves = false;

  ChannelScales(const Matrix& matrix, int64_t tile)
      : scale_(static_cast<const float*>(matrix.scale) + tile * kTileOutputs) {}

  Floats all() const { return load_floats(scale_); }

 private:
  const float* scale_;
};

// A bfloat16 scale for each group of at least kInputGroup.
class BFloat16Scales {
 public:
  static constexpr bool kPerGroup = true;
  static constexpr bool kPlain = true;  // no minimum, no halves
  static constexpr bool kHalves = false;

  BFloat16Scales(const Matrix& matrix, int64_t tile)
      : scale_(static_cast<const uint16_t*>(matrix.scale) + tile * groups(matrix) * kTileOutputs),
        group_(matrix.group) {}

  int64_t group_of(int64_t input) const { return input / group_; }
  Floats scale(int64_t group) const { return load_bfloat16(scale_ + group * kTileOutputs); }

 private:
  const uint16_t* scale_;
  int64_t group_;
};

// Scales and minimums of any type that matrix.h describes; Halves: for groups of kHalfGroup.
template <bool Halves>
class AnyScales {
 public:
  static constexpr bool kPerGroup = true;
  static constexpr bool kPlain = false;
  static constexpr bool kHalves = Halves;

  AnyScales(const Matrix& matrix, int64_t tile)
      : matrix_(matrix),
        first_(tile * groups(matrix)),
        first_block_(matrix.block > 0 ? tile * (padded_inputs(matrix) / matrix.block) : 0),
        shift_(shift_of(matrix.group)),
        block_shift_(matrix.block > 0 ? shift_of(matrix.block) - shift_ : 0) {}

  bool has_minimum() const { return matrix_.origin != Origin::middle; }
  int64_t group_of(int64_t input) const { return input >> shift_; }
  Floats scale(int64_t group) const { return load(matrix_.scale, matrix_.block_scale, group); }
  // What to add to the products of x, for each unit of Σx.
  Floats minimum(int64_t group, const Floats& scale) const {
    return matrix_.origin == Origin::zero ? multiply(load_int8(static_cast<const int8_t*>(matrix_.minimum) + at(group)),
                                                     ops::DLF_CPU::scale(scale, -1.0F))
                                          : load(matrix_.minimum, matrix_.block_minimum, group);
  }

 private:
  int64_t at(int64_t group) const { return (first_ + group) * kTileOutputs; }

  Floats load(const void* from, const void* blocks, int64_t group) const {
    if (blocks != nullptr) {
      const int64_t block = first_block_ + (group >> block_shift_);
      return multiply(load_int8(static_cast<const int8_t*>(from) + at(group)),
                      load_float16(static_cast<const uint16_t*>(blocks) + block * kTileOutputs));
    }
    switch (matrix_.scale_type) {
      case DType::float32:
        return load_floats(static_cast<const float*>(from) + at(group));
      case DType::bfloat16:
        return load_bfloat16(static_cast<const uint16_t*>(from) + at(group));
      default:
        return load_float16(static_cast<const uint16_t*>(from) + at(group));
    }
  }

  const Matrix& matrix_;
  int64_t first_;
  int64_t first_block_;
  int shift_;
  int block_shift_;
};

}  // namespace
}  // namespace dlf::ops::DLF_CPU
