#pragma once

#include <ATen/CPUGeneratorImpl.h>
#include <ATen/TensorOperators.h>
#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/randint.h>
#include <ATen/ops/randn.h>
#include <ATen/ops/zeros_like.h>

#include <vector>

#include "ops/cpu/pack.h"

// Random packed matrices of every kind, and the obvious way to read tiles.
namespace dlf::testing {

struct PackedKind {
  const char* name;
  int bits;
  bool is_signed;
  int64_t group;
  at::ScalarType scale;
  ops::Origin origin;
  int64_t block = 0;
};

inline constexpr PackedKind kPackedKinds[] = {
    {"Q8_0", 8, true, 32, at::kHalf, ops::Origin::middle},
    {"Q4_0", 4, true, 32, at::kHalf, ops::Origin::middle},
    {"Q4_1", 4, false, 32, at::kHalf, ops::Origin::minimum},
    {"Q5_0", 5, true, 32, at::kHalf, ops::Origin::middle},
    {"Q5_1", 5, false, 32, at::kHalf, ops::Origin::minimum},
    {"Q4_K", 4, false, 32, at::kHalf, ops::Origin::minimum, 256},
    {"Q5_K", 5, false, 32, at::kHalf, ops::Origin::minimum, 256},
    {"Q6_K", 6, true, 16, at::kHalf, ops::Origin::middle, 256},
    {"Q2_K", 2, false, 16, at::kHalf, ops::Origin::minimum, 256},
    {"GPTQ in groups of 128", 4, false, 128, at::kHalf, ops::Origin::zero},
    {"AWQ in groups of 64", 4, false, 64, at::kBFloat16, ops::Origin::zero},
    {"GPTQ by channel", 4, false, 0, at::kHalf, ops::Origin::zero},
    {"GPTQ of 8 bits", 8, false, 128, at::kHalf, ops::Origin::zero},
    {"W4A16", 4, true, 128, at::kFloat, ops::Origin::middle},
    {"W8A16", 8, true, 0, at::kBFloat16, ops::Origin::middle},
    {"7 bits with a minimum", 7, true, 64, at::kFloat, ops::Origin::minimum},
    {"Q3_K", 3, true, 16, at::kHalf, ops::Origin::middle, 256},
    {"IQ4_XS", 8, true, 32, at::kHalf, ops::Origin::middle, 256},
};

inline at::Tensor random_integers(int64_t low, int64_t high, at::IntArrayRef shape, at::ScalarType type,
                                  at::Generator& generator) {
  return at::randint(low, high, shape, generator, at::kLong).to(type);
}

// Scales are small, so that sums have about the size of their terms.
inline ops::PackedMatrix random_packed(const PackedKind& kind, int64_t out, int64_t in, uint64_t seed) {
  at::Generator generator = at::make_generator<at::CPUGeneratorImpl>(seed);
  const auto floats = [&](int64_t count, at::ScalarType type) {
    return at::randn({out, count}, generator, at::kFloat).mul(0.05).to(type);
  };
  const int64_t half = int64_t{1} << (kind.bits - 1);
  const int64_t groups = kind.group > 0 ? (in + kind.group - 1) / kind.group : 1;
  ops::PackedMatrix packed = {};
  packed.bits = kind.bits;
  packed.group = kind.group;
  packed.block = kind.block;
  packed.values = kind.is_signed ? random_integers(-half, half, {out, in}, at::kChar, generator)
                                 : random_integers(0, 2 * half, {out, in}, at::kByte, generator);
  const bool has_minimum = kind.origin == ops::Origin::minimum;
  if (kind.block > 0) {
    const int64_t blocks = (in + kind.block - 1) / kind.block;
    packed.scale = random_integers(-32, 64, {out, groups}, at::kChar, generator);
    packed.block_scale = floats(blocks, kind.scale);
    if (has_minimum) {
      packed.minimum = random_integers(0, 64, {out, groups}, at::kChar, generator);
      packed.block_minimum = floats(blocks, kind.scale);
    }
  } else {
    packed.scale = floats(groups, kind.scale);
    packed.minimum = has_minimum ? floats(groups, kind.scale) : at::Tensor();
  }
  if (kind.origin == ops::Origin::zero) {
    packed.zero = random_integers(0, 2 * half, {out, groups}, at::kInt, generator);
  }
  return packed;
}

// The float64 weights [out, in] of a packed matrix.
inline at::Tensor values_of(const ops::PackedMatrix& packed) {
  const int64_t in = packed.values.size(1);
  const auto spread = [&](const at::Tensor& from, int64_t inputs) {
    const at::Tensor numbers = from.to(at::kDouble);
    return inputs == 0 ? numbers.expand({from.size(0), in}) : numbers.repeat_interleave(inputs, 1).narrow(1, 0, in);
  };
  at::Tensor scale = spread(packed.scale, packed.group);
  at::Tensor minimum = packed.minimum.defined() ? spread(packed.minimum, packed.group) : at::zeros_like(scale);
  if (packed.block > 0) {
    scale = scale * spread(packed.block_scale, packed.block);
    minimum = packed.minimum.defined() ? minimum * spread(packed.block_minimum, packed.block) : minimum;
  }
  at::Tensor values = packed.values.to(at::kDouble);
  if (packed.zero.defined()) {
    values = values - spread(packed.zero, packed.group);
  }
  return values * scale + minimum;
}

inline double number_at(const void* from, DType type, int64_t index) {
  switch (type) {
    case DType::float32:
      return static_cast<const float*>(from)[index];
    case DType::bfloat16:
      return static_cast<float>(static_cast<const c10::BFloat16*>(from)[index]);
    default:
      return static_cast<float>(static_cast<const c10::Half*>(from)[index]);
  }
}

// The integer of an output and an input as it is stored.
inline int stored_at(const ops::Matrix& matrix, int64_t o, int64_t i) {
  const int64_t padded = ops::padded_inputs(matrix);
  const int64_t channel = o % ops::kTileOutputs;
  const auto* tile = static_cast<const uint8_t*>(matrix.data) +
                     o / ops::kTileOutputs * padded * ops::kTileOutputs * ops::bits(matrix.type) / 8;
  switch (matrix.type) {
    case ops::MatrixType::int8:
      return static_cast<int8_t>(tile[i / 4 * 64 + channel * 4 + i % 4]);
    case ops::MatrixType::int4:
      return tile[i / 8 * 64 + channel * 4 + i % 4] >> (i % 8 < 4 ? 0 : 4) & 15;
    default: {
      const uint8_t* group = tile + i / 32 * 6 * 64 + channel * 4 + i % 4;
      const int64_t line = i % 16 / 4;
      const bool upper = i % 32 >= 16;
      const int low = group[line * 64] >> (upper ? 4 : 0) & 15;
      const int high = group[(4 + line / 2) * 64] >> (line % 2 * 4 + (upper ? 2 : 0)) & 3;
      return low | high << 4;
    }
  }
}

// The weight of an output and an input of tiles, decoded one by one.
inline double weight_at(const ops::Matrix& matrix, int64_t o, int64_t i) {
  const int64_t tile = o / ops::kTileOutputs;
  const int64_t channel = o % ops::kTileOutputs;
  const int64_t group = matrix.group > 0 ? i / matrix.group : 0;
  const int64_t at = (tile * ops::groups(matrix) + group) * ops::kTileOutputs + channel;
  const auto byte = [&](const void* from) -> double { return static_cast<const int8_t*>(from)[at]; };
  double scale = 0.0;
  double minimum = 0.0;
  if (matrix.block > 0) {
    const int64_t blocks = ops::padded_inputs(matrix) / matrix.block;
    const int64_t block = (tile * blocks + i / matrix.block) * ops::kTileOutputs + channel;
    scale = byte(matrix.scale) * number_at(matrix.block_scale, DType::float16, block);
    if (matrix.origin == ops::Origin::minimum) {
      minimum = byte(matrix.minimum) * number_at(matrix.block_minimum, DType::float16, block);
    }
  } else {
    scale = number_at(matrix.scale, matrix.scale_type, at);
    if (matrix.origin == ops::Origin::minimum) {
      minimum = number_at(matrix.minimum, matrix.scale_type, at);
    }
  }
  double value = stored_at(matrix, o, i);
  if (matrix.origin == ops::Origin::middle) {
    value -= ops::middle(matrix.type);
  } else if (matrix.origin == ops::Origin::zero) {
    value -= byte(matrix.minimum);
  }
  return value * scale + minimum;
}

// The float64 weights [out, in] of tiles.
inline at::Tensor values_of(const ops::Matrix& matrix) {
  at::Tensor values = at::empty({matrix.out, matrix.in}, at::kDouble);
  for (int64_t o = 0; o < matrix.out; ++o) {
    for (int64_t i = 0; i < matrix.in; ++i) {
      values.mutable_data_ptr<double>()[o * matrix.in + i] = weight_at(matrix, o, i);
    }
  }
  return values;
}

}  // namespace dlf::testing
