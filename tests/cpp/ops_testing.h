#pragma once

#include <c10/util/BFloat16.h>

#include <cmath>
#include <cstdint>
#include <random>
#include <vector>

#include "kernels.h"
#include "support/dtype.h"

// Helpers for the tests of operations: random numbers, and values rounded to a type.
namespace dlf::ops {
namespace {

using Floats = std::vector<float>;
using testing::for_each_kernel;

[[maybe_unused]] Floats random_floats(int64_t count, uint32_t seed) {
  std::mt19937 generator(seed);
  std::normal_distribution<float> normal;
  Floats values(count);
  for (float& value : values) {
    value = normal(generator);
  }
  return values;
}

// Values rounded to a type, as stored and as floats.
struct Stored {
  std::vector<char> bytes;
  Floats values;
  DType dtype;

  Stored(Floats from, DType type) : values(std::move(from)), dtype(type) {
    bytes.resize(values.size() * (type == DType::float32 ? 4 : 2));
    for (size_t i = 0; i < values.size(); ++i) {
      if (type == DType::float32) {
        reinterpret_cast<float*>(bytes.data())[i] = values[i];
      } else {
        const auto rounded = static_cast<c10::BFloat16>(values[i]);
        reinterpret_cast<c10::BFloat16*>(bytes.data())[i] = rounded;
        values[i] = static_cast<float>(rounded);
      }
    }
  }
};

[[maybe_unused]] constexpr DType kTypes[] = {DType::float32, DType::bfloat16};

[[maybe_unused]] double element(const Stored& stored, int64_t i) {
  return stored.dtype == DType::float32
             ? reinterpret_cast<const float*>(stored.bytes.data())[i]
             : static_cast<float>(reinterpret_cast<const c10::BFloat16*>(stored.bytes.data())[i]);
}

[[maybe_unused]] bool near(double value, double expected, double tolerance) {
  return std::abs(value - expected) <= tolerance * (1.0 + std::abs(expected));
}

}  // namespace
}  // namespace dlf::ops
