// Compares products with double precision, for every type of weights and every instruction set of this processor.
#include "ops/cpu/linear.h"

#include <ATen/ops/empty.h>

#include <algorithm>
#include <bit>
#include <utility>

#include "check.h"
#include "ops/cpu/activation.h"
#include "ops/cpu/quantize.h"
#include "ops_testing.h"

namespace dlf::ops {
namespace {

// Returns the float32 values [out, in] of tiles.
at::Tensor dequantize(const Matrix& matrix) {
  at::Tensor weight = at::empty({matrix.out, matrix.in}, at::kFloat);
  const int64_t padded = padded_inputs(matrix.in, matrix.group);
  for (int64_t o = 0; o < matrix.out; ++o) {
    const int64_t tile = o / kTileOutputs;
    const int64_t channel = o % kTileOutputs;
    for (int64_t i = 0; i < matrix.in; ++i) {
      float& value = weight.mutable_data_ptr<float>()[o * matrix.in + i];
      if (matrix.type == MatrixType::int8) {
        const auto* data = static_cast<const int8_t*>(matrix.data) + tile * padded * kTileOutputs;
        const int64_t at = i / 4 * 64 + channel * 4 + i % 4;
        value = static_cast<float>(data[at]) * static_cast<const float*>(matrix.scale)[o];
      } else {
        const auto* data = static_cast<const uint8_t*>(matrix.data) + tile * padded * kTileOutputs / 2;
        const auto* scale =
            static_cast<const c10::BFloat16*>(matrix.scale) + tile * (padded / matrix.group) * kTileOutputs;
        const uint8_t both = data[i / 8 * 64 + channel * 4 + i % 4];
        const int half = i % 8 < 4 ? both & 15 : both >> 4;
        value = static_cast<float>(half - 8) * static_cast<float>(scale[i / matrix.group * kTileOutputs + channel]);
      }
    }
  }
  return weight;
}

// A random matrix as stored, and its values.
struct Weights {
  std::vector<char> bytes;
  QuantizedTensor tiles;
  Floats values;
  Matrix matrix;

  Weights(int64_t out, int64_t in, MatrixType type, int64_t group, uint32_t seed) {
    const Floats random = random_floats(out * in, seed);
    if (is_quantized(type)) {
      ThreadTeam team(2);
      at::Tensor dense = at::empty({out, in}, at::kFloat);
      std::copy(random.begin(), random.end(), dense.mutable_data_ptr<float>());
      tiles = quantize(dense, type, group, team);
      matrix = {tiles.data.const_data_ptr(), tiles.scale.const_data_ptr(), out, in, type, group};
      const at::Tensor back = dequantize(matrix);
      values.assign(back.const_data_ptr<float>(), back.const_data_ptr<float>() + out * in);
    } else {
      Stored stored(random, type == MatrixType::float32 ? DType::float32 : DType::bfloat16);
      bytes = std::move(stored.bytes);
      values = std::move(stored.values);
      matrix = {bytes.data(), nullptr, out, in, type, 0};
    }
  }
};

constexpr std::pair<MatrixType, int64_t> kWeightTypes[] = {{MatrixType::float32, 0},
                                                           {MatrixType::bfloat16, 0},
                                                           {MatrixType::int8, 0},
                                                           {MatrixType::int4, 32},
                                                           {MatrixType::int4, 64}};

// Returns element i of a row as the products read it.
double input_value(const LinearInputRows& x, int64_t row, int64_t i, MatrixType type) {
  switch (type) {
    case MatrixType::float32:
      return x.x[row * x.in + i];
    case MatrixType::bfloat16:
      return static_cast<float>(c10::BFloat16(x.bfloat16[row * x.in + i], c10::BFloat16::from_bits()));
    default:
      return static_cast<double>(x.value[row * x.stride + i]) *
             x.scale[row * (x.stride / kInputGroup) + i / kInputGroup];
  }
}

template <typename Body>
void for_each_linear_kernel(MatrixType type, Body&& body) {
  if (is_quantized(type)) {
    for_each_kernel(KERNELS_BF16(linear_tiles_kernel), body);
  } else {
    for_each_kernel(KERNELS_BF16(linear_kernel), body);
  }
}

void linear_is_a_matrix_product() {
  ThreadTeam team(1);
  for (const auto& [type, group] : kWeightTypes) {
    for (const int rows : {1, 2, 3, 4, 7, 16, 19}) {
      for (const int64_t in : {1, 7, 64, 96, 131, 544}) {
        const int64_t out = 37;
        const Floats data = random_floats(rows * in, 1);
        const Floats bias = random_floats(out, 2);
        const Weights weights(out, in, type, group, 3);
        LinearInput input(rows, in);
        const LinearInputRows x = input.prepare(data.data(), rows, in, type, team);
        for (const bool accumulate : {false, true}) {
          for_each_linear_kernel(type, [&](auto* kernel) {
            Floats y(rows * out, 0.5F);
            const LinearArgs args = {{weights.matrix, bias.data(), y.data(), rows}, accumulate};
            kernel(x, args, 0, 1);
            kernel(x, args, 1, tiles(out));
            for (int64_t r = 0; r < rows; ++r) {
              for (int64_t o = 0; o < out; ++o) {
                double expected = bias[o] + (accumulate ? 0.5 : 0.0);
                double size = 0.0;
                for (int64_t i = 0; i < in; ++i) {
                  const double product = input_value(x, r, i, type) * weights.values[o * in + i];
                  expected += product;
                  size += std::abs(product);
                }
                EXPECT(std::abs(y[r * out + o] - expected) <= 1e-6 * (2.0 + size));
              }
            }
          });
        }
      }
    }
  }
}

void a_row_does_not_depend_on_the_others() {
  ThreadTeam team(1);
  const int rows = 15;
  const int64_t in = 224;
  const int64_t out = 48;
  const Floats data = random_floats(rows * in, 4);
  for (const auto& [type, group] : kWeightTypes) {
    const Weights weights(out, in, type, group, 5);
    LinearInput input(rows, in);
    LinearInput one(1, in);
    for_each_linear_kernel(type, [&](auto* kernel) {
      Floats together(rows * out);
      Floats alone(out);
      kernel(input.prepare(data.data(), rows, in, type, team),
             {{weights.matrix, nullptr, together.data(), rows}, false}, 0, tiles(out));
      for (int64_t r = 0; r < rows; ++r) {
        kernel(one.prepare(data.data() + r * in, 1, in, type, team),
               {{weights.matrix, nullptr, alone.data(), 1}, false}, 0, tiles(out));
        EXPECT(std::equal(alone.begin(), alone.end(), together.begin() + r * out));
      }
    });
  }
}

void several_products_run_in_one_loop() {
  const int rows = 3;
  const int64_t in = 96;
  const Floats data = random_floats(rows * in, 6);
  for (const auto& [type, group] : kWeightTypes) {
    const Weights first(37, in, type, group, 7);
    const Weights second(16, in, type, group, 8);
    const Weights third(37, in, type, group, 9);
    LinearInput input(rows, in);
    ThreadTeam team(3);
    const LinearInputRows x = input.prepare(data.data(), rows, in, type, team);
    Floats y[3], expected[3];
    const Weights* weights[3] = {&first, &second, &third};
    std::vector<LinearArgs> products;
    for (int i = 0; i < 3; ++i) {
      const int64_t out = weights[i]->matrix.out;
      y[i].resize(rows * out);
      expected[i].resize(rows * out);
      products.push_back({{weights[i]->matrix, nullptr, y[i].data(), rows}, false});
      linear(x, {{weights[i]->matrix, nullptr, expected[i].data(), rows}, false}, team);
    }
    linear(x, products, team);
    for (int i = 0; i < 3; ++i) {
      EXPECT(y[i] == expected[i]);
    }
    Floats gated(rows * 37), up(rows * 37);
    linear_gated(x, {{first.matrix, nullptr, gated.data(), rows}, false},
                 {{third.matrix, nullptr, up.data(), rows}, false}, Activation::silu, team);
    for (size_t i = 0; i < gated.size(); ++i) {
      const double gate = expected[0][i];
      EXPECT(near(gated[i], gate / (1.0 + std::exp(-gate)) * expected[2][i], 1e-5));
    }
  }
}

void prefill_multiplies_as_decode_does() {
  ThreadTeam team(2);
  const int rows = 40;
  const int64_t in = 96;
  const int64_t out = 33;
  const Floats data = random_floats(rows * in, 10);
  const Floats bias = random_floats(out, 11);
  for (const auto& [type, group] : kWeightTypes) {
    const Weights weights(out, in, type, group, 12);
    LinearInput input(rows, in);
    const LinearInputRows x = input.prepare(data.data(), rows, in, type, team);
    Floats decoded(rows * out, 1.0F);
    Floats prefilled(rows * out, 1.0F);
    linear(x, {{weights.matrix, bias.data(), decoded.data(), rows}, true}, team);
    linear_prefill(x, {{weights.matrix, bias.data(), prefilled.data(), rows}, true}, team);
    for (size_t i = 0; i < decoded.size(); ++i) {
      // In bfloat16 prefill also rounds the product, by up to 1/512.
      const double tolerance = type == MatrixType::bfloat16 ? 4e-3 * (4.0 + std::abs(decoded[i])) : 1e-4;
      EXPECT(std::abs(prefilled[i] - decoded[i]) <= tolerance);
    }
  }
}

void input_is_rounded_to_the_nearest() {
  ThreadTeam team(1);
  Floats data = random_floats(100, 13);
  std::fill(data.begin() + 32, data.begin() + 64, 0.0F);
  data[70] = 1e-38F;
  LinearInput input(1, 100);
  const LinearInputRows x = input.prepare(data.data(), 1, 100, MatrixType::bfloat16, team);
  for (int64_t i = 0; i < 100; ++i) {
    EXPECT(x.bfloat16[i] == static_cast<c10::BFloat16>(data[i]).x);
  }
  for_each_kernel(KERNELS(quantize_input_kernel), [&](auto* kernel) {
    const LinearInputRows y = input.prepare(data.data(), 1, 100, MatrixType::int8, team);
    kernel(y, 0, 1);
    for (int64_t i = 0; i < y.stride; ++i) {
      const double scale = y.scale[i / kInputGroup];
      EXPECT(std::abs(y.value[i] * scale - (i < 100 ? data[i] : 0.0)) <= 0.5001 * scale);
    }
    for (int64_t group = 0; group < 4; ++group) {
      int32_t sum = 0;
      for (int64_t i = 0; i < kInputGroup; ++i) {
        sum += y.value[group * kInputGroup + i];
      }
      EXPECT(y.sum[group] == sum);
    }
    EXPECT(y.scale[1] == 0.0F);
  });
}

// Values that are not finite must reach the logits, where a check names the model.
void input_that_is_not_finite_shows() {
  ThreadTeam team(1);
  for (const float bad : {INFINITY, -INFINITY, NAN, std::bit_cast<float>(0x7fffffffU)}) {
    for (const auto& [type, group] : kWeightTypes) {
      const Weights weights(20, 64, type, group, 14);
      Floats data = random_floats(64, 15);
      data[40] = bad;
      LinearInput input(1, 64);
      for_each_linear_kernel(type, [&](auto* kernel) {
        Floats y(20);
        kernel(input.prepare(data.data(), 1, 64, type, team), {{weights.matrix, nullptr, y.data(), 1}, false}, 0, 2);
        EXPECT(std::none_of(y.begin(), y.end(), [](float value) { return std::isfinite(value); }));
      });
    }
  }
}

void quantized_weights_are_near() {
  ThreadTeam team(2);
  const int64_t out = 35;
  const int64_t in = 200;
  at::Tensor weight = at::empty({out, in}, at::kFloat);
  Floats random = random_floats(out * in, 16);
  std::fill(random.begin(), random.begin() + 40, 0.0F);
  std::copy(random.begin(), random.end(), weight.mutable_data_ptr<float>());
  const QuantizedTensor eight = quantize(weight, MatrixType::int8, 0, team);
  const at::Tensor back =
      dequantize({eight.data.const_data_ptr(), eight.scale.const_data_ptr(), out, in, MatrixType::int8, 0});
  for (int64_t i = 0; i < out * in; ++i) {
    const double scale = eight.scale.const_data_ptr<float>()[i / in];
    EXPECT(std::abs(back.const_data_ptr<float>()[i] - random[i]) <= 0.5001 * scale);
  }
  for (const int64_t group : {32, 64}) {
    const QuantizedTensor four = quantize(weight, MatrixType::int4, group, team);
    const at::Tensor near_weight =
        dequantize({four.data.const_data_ptr(), four.scale.const_data_ptr(), out, in, MatrixType::int4, group});
    double error = 0.0;
    double plain = 0.0;  // error of a scale without a search, which makes the largest magnitude 7
    for (int64_t o = 0; o < out; ++o) {
      for (int64_t first = 0; first < in; first += group) {
        const int64_t end = std::min(first + group, in);
        double largest = 0.0;
        for (int64_t i = first; i < end; ++i) {
          largest = std::max(largest, std::abs(static_cast<double>(random[o * in + i])));
        }
        for (int64_t i = first; i < end; ++i) {
          const double value = random[o * in + i];
          const double rounded = largest > 0.0 ? std::round(value / (largest / 7)) * (largest / 7) : 0.0;
          error += std::pow(near_weight.const_data_ptr<float>()[o * in + i] - value, 2);
          plain += std::pow(rounded - value, 2);
        }
      }
    }
    EXPECT(error < 0.8 * plain);
    EXPECT(error > 0.3 * plain);
  }
}

void quantizing_refuses_what_it_cannot_do() {
  ThreadTeam team(1);
  const at::Tensor weight = at::empty({4, 64}, at::kFloat);
  EXPECT_THROWS(quantize(weight, MatrixType::int8, 32, team));
  EXPECT_THROWS(quantize(weight, MatrixType::int4, 0, team));
  EXPECT_THROWS(quantize(weight, MatrixType::bfloat16, 0, team));
  EXPECT_THROWS(quantize(at::empty({4}, at::kFloat), MatrixType::int8, 0, team));
  EXPECT_THROWS(quantize(at::empty({4, 64}, at::kHalf), MatrixType::int8, 0, team));
}

}  // namespace
}  // namespace dlf::ops

int main() {
  using namespace dlf::ops;
  return dlf::testing::run({
      {"linear is a matrix product", linear_is_a_matrix_product},
      {"a row does not depend on the others", a_row_does_not_depend_on_the_others},
      {"several products run in one loop", several_products_run_in_one_loop},
      {"prefill multiplies as decode does", prefill_multiplies_as_decode_does},
      {"input is rounded to the nearest", input_is_rounded_to_the_nearest},
      {"input that is not finite shows", input_that_is_not_finite_shows},
      {"quantized weights are near", quantized_weights_are_near},
      {"quantizing refuses what it cannot do", quantizing_refuses_what_it_cannot_do},
  });
}
