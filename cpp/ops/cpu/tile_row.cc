#include "ops/cpu/tile_row.h"

#include <c10/util/BFloat16.h>
#include <c10/util/Half.h>

namespace dlf::ops {
namespace {

// The integers of one output of a tile, as they are stored.
class StoredRow {
 public:
  StoredRow(const Matrix& matrix, int64_t output)
      : type_(matrix.type),
        bytes_(static_cast<const uint8_t*>(matrix.data) +
               output / kTileOutputs * padded_inputs(matrix) * kTileOutputs * bits(matrix.type) / 8 +
               output % kTileOutputs * 4) {}

  int operator[](int64_t i) const {
    switch (type_) {
      case MatrixType::int8:
        return static_cast<int8_t>(bytes_[i / 4 * kRegister + i % 4]);
      case MatrixType::int4:
        return bytes_[i / 8 * kRegister + i % 4] >> (i % 8 / 4 * 4) & 15;
      default: {
        const uint8_t* group = bytes_ + i / kInputGroup * 6 * kRegister + i % 4;
        const int64_t line = i % kHalfGroup / 4;
        const int64_t upper = i % kInputGroup / kHalfGroup;
        const int low = group[line * kRegister] >> (4 * upper) & 15;
        const int high = group[(4 + line / 2) * kRegister] >> (line % 2 * 4 + 2 * upper) & 3;
        return low | high << 4;
      }
    }
  }

 private:
  static constexpr int64_t kRegister = 4 * kTileOutputs;  // bytes

  MatrixType type_;
  const uint8_t* bytes_;
};

float number_at(const void* from, DType type, int64_t index) {
  switch (type) {
    case DType::float32:
      return static_cast<const float*>(from)[index];
    case DType::bfloat16:
      return static_cast<const c10::BFloat16*>(from)[index];
    default:
      return static_cast<const c10::Half*>(from)[index];
  }
}

// The scales of one output, each at an input.
class Levels {
 public:
  Levels(const Matrix& matrix, int64_t output)
      : matrix_(matrix), tile_(output / kTileOutputs), lane_(output % kTileOutputs) {}

  float scale(int64_t i) const { return level(matrix_.scale, matrix_.block_scale, i); }
  float minimum(int64_t i) const {
    return matrix_.origin == Origin::minimum ? level(matrix_.minimum, matrix_.block_minimum, i) : 0.0F;
  }
  // What to subtract from a stored integer.
  int zero(int64_t i) const {
    switch (matrix_.origin) {
      case Origin::middle:
        return middle(matrix_.type);
      case Origin::zero:
        return static_cast<const int8_t*>(matrix_.minimum)[at(matrix_.group, i)];
      default:
        return 0;
    }
  }

 private:
  int64_t at(int64_t inputs, int64_t i) const {
    const int64_t count = inputs > 0 ? padded_inputs(matrix_) / inputs : 1;
    return (tile_ * count + (i >> shift_of(inputs))) * kTileOutputs + lane_;
  }
  float level(const void* fine, const void* coarse, int64_t i) const {
    if (matrix_.block == 0) {
      return number_at(fine, matrix_.scale_type, at(matrix_.group, i));
    }
    return static_cast<float>(static_cast<const int8_t*>(fine)[at(matrix_.group, i)]) *
           number_at(coarse, DType::float16, at(matrix_.block, i));
  }

  const Matrix& matrix_;
  int64_t tile_;
  int64_t lane_;
};

}  // namespace

void read_tile_row(const Matrix& matrix, int64_t output, float* y) {
  const StoredRow stored(matrix, output);
  const Levels levels(matrix, output);
  const int64_t inputs = matrix.group > 0 ? matrix.group : matrix.in;  // that share all levels
  for (int64_t first = 0; first < matrix.in; first += inputs) {
    const float scale = levels.scale(first);
    const float minimum = levels.minimum(first);
    const int zero = levels.zero(first);
    const int64_t end = first + inputs < matrix.in ? first + inputs : matrix.in;
    for (int64_t i = first; i < end; ++i) {
      y[i] = static_cast<float>(stored[i] - zero) * scale + minimum;
    }
  }
}

}  // namespace dlf::ops
