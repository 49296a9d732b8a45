// Compares products with double precision, for every type of weights and every instruction set of this processor.
#include "ops/cpu/linear.h"

#include <ATen/ops/empty.h>

#include <algorithm>
#include <bit>
#include <utility>

#include "check.h"
#include "ops/cpu/activation.h"
#include "ops/cpu/embedding.h"
#include "ops/cpu/quantize.h"
#include "ops_testing.h"
#include "tiles_testing.h"

namespace dlf::ops {
namespace {

using dlf::testing::kPackedKinds;
using dlf::testing::PackedKind;
using dlf::testing::random_packed;
using dlf::testing::values_of;

// A kind of weights: of floats, quantized by ourselves, or packed in a file.
struct Kind {
  MatrixType type;
  int64_t group;
  const PackedKind* packed = nullptr;
};

std::vector<Kind> all_kinds() {
  std::vector<Kind> kinds = {{MatrixType::float32, 0},
                             {MatrixType::bfloat16, 0},
                             {MatrixType::int8, 0},
                             {MatrixType::int4, 32},
                             {MatrixType::int4, 64}};
  for (const PackedKind& packed : kPackedKinds) {
    kinds.push_back({MatrixType::int8, 0, &packed});
  }
  return kinds;
}
const std::vector<Kind> kKinds = all_kinds();

// A random matrix as stored, and its values.
struct Weights {
  std::vector<char> bytes;
  Tiles tiles;
  std::vector<double> values;
  Matrix matrix;

  Weights(int64_t out, int64_t in, const Kind& kind, uint32_t seed) {
    ThreadTeam team(2);
    const Floats random = random_floats(out * in, seed);
    if (kind.packed != nullptr) {
      const PackedMatrix packed = random_packed(*kind.packed, out, in, seed);
      tiles = pack(packed, team);
      matrix = matrix_of(tiles, out, in, "weight");
      set(values_of(packed));
    } else if (is_quantized(kind.type)) {
      at::Tensor dense = at::empty({out, in}, at::kFloat);
      std::copy(random.begin(), random.end(), dense.mutable_data_ptr<float>());
      tiles = quantize(dense, kind.type, kind.group, team);
      matrix = matrix_of(tiles, out, in, "weight");
      set(values_of(matrix));
    } else {
      Stored stored(random, kind.type == MatrixType::float32 ? DType::float32 : DType::bfloat16);
      bytes = std::move(stored.bytes);
      values.assign(stored.values.begin(), stored.values.end());
      matrix = {bytes.data(), nullptr, out, in, kind.type, 0};
    }
  }

  void set(const at::Tensor& exact) {
    const at::Tensor dense = exact.contiguous();
    values.assign(dense.const_data_ptr<double>(), dense.const_data_ptr<double>() + dense.numel());
  }
};

// Returns element i of a row as the products read it.
double input_value(const LinearInputRows& x, int64_t row, int64_t i, MatrixType type) {
  switch (type) {
    case MatrixType::float32:
      return x.x[row * x.in + i];
    case MatrixType::bfloat16:
      return static_cast<float>(c10::BFloat16(x.bfloat16[row * x.stride + i], c10::BFloat16::from_bits()));
    default:
      return static_cast<double>(x.value[row * x.stride + i]) *
             x.scale[row * (x.stride / kInputGroup) + i / kInputGroup];
  }
}

template <typename Body>
void for_each_linear_kernel(MatrixType type, Body&& body) {
  if (is_quantized(type)) {
    for_each_kernel(KERNELS_BF16(linear_tiles_kernel), body);
    for_each_kernel(KERNELS_BF16(linear_blocks_kernel), body);
  } else {
    for_each_kernel(KERNELS_BF16(linear_kernel), body);
    for_each_kernel(KERNELS_BF16(linear_units_kernel), body);
  }
}

// Rows that bfloat16 weights read as they are: not all kernels round them.
Floats random_rows(int64_t count, MatrixType type, uint32_t seed) {
  return Stored(random_floats(count, seed), type == MatrixType::bfloat16 ? DType::bfloat16 : DType::float32).values;
}

void linear_is_a_matrix_product() {
  ThreadTeam team(1);
  for (const Kind& kind : kKinds) {
    for (const int rows : {1, 2, 3, 4, 7, 16, 19, 20}) {
      for (const int64_t in : {1, 7, 64, 96, 131, 544}) {
        const int64_t out = 37;
        const Weights weights(out, in, kind, 3);
        const Floats data = random_rows(rows * in, weights.matrix.type, 1);
        const Floats bias = random_floats(out, 2);
        LinearInput input(rows, in);
        const LinearInputRows x = input.prepare(data.data(), rows, in, weights.matrix.type, team);
        for (const bool accumulate : {false, true}) {
          for_each_linear_kernel(weights.matrix.type, [&](auto* kernel) {
            Floats y(rows * out, 0.5F);
            const LinearArgs args = {{weights.matrix, bias.data(), y.data(), rows}, accumulate};
            kernel(x, args, 0, 1);
            kernel(x, args, 1, tiles(out));
            for (int64_t r = 0; r < rows; ++r) {
              for (int64_t o = 0; o < out; ++o) {
                double expected = bias[o] + (accumulate ? 0.5 : 0.0);
                double size = 0.0;
                for (int64_t i = 0; i < in; ++i) {
                  const double product = input_value(x, r, i, weights.matrix.type) * weights.values[o * in + i];
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

// With one and several blocks of rows, channels and inputs, whole and partial ones.
void a_row_does_not_depend_on_the_others() {
  ThreadTeam team(1);
  const int most = 269;
  const int64_t out = 69;
  for (const Kind& kind : kKinds) {
    for (const int64_t in : {7, 224, 1056}) {
      const Weights weights(out, in, kind, 5);
      const Floats data = random_floats(most * in, 4);
      LinearInput input(most, in);
      for_each_linear_kernel(weights.matrix.type, [&](auto* kernel) {
        const auto product = [&](int first, int rows) {
          Floats y(rows * out);
          const LinearInputRows x = input.prepare(data.data() + first * in, rows, in, weights.matrix.type, team);
          kernel(x, {{weights.matrix, nullptr, y.data(), rows}, false}, 0, 1);
          kernel(x, {{weights.matrix, nullptr, y.data(), rows}, false}, 1, tiles(out));
          return y;
        };
        const Floats together = product(0, most);
        for (int first = 0, rows = 1; first + rows <= most; first += rows, ++rows) {
          const Floats some = product(first, rows);
          EXPECT(std::equal(some.begin(), some.end(), together.begin() + first * out));
        }
      });
    }
  }
}

// With one and several blocks of rows, channels and inputs, whole and partial ones.
void blocks_multiply_as_tiles_do() {
  ThreadTeam team(1);
  const int64_t out = 37;
  const Floats bias = random_floats(out, 20);
  for (const Kind& kind : kKinds) {
    for (const int64_t in : {7, 96, 1056}) {
      const Weights weights(out, in, kind, 21);
      if (!is_quantized(weights.matrix.type)) {
        continue;
      }
      for (const int rows : {1, 2, 3, 5, 11, 269}) {
        const Floats data = random_floats(rows * in, 22);
        LinearInput input(rows, in);
        const LinearInputRows x = input.prepare(data.data(), rows, in, weights.matrix.type, team);
        const auto products = [&](auto... kernels) {
          std::vector<Floats> results;
          for_each_kernel(kernels..., [&](auto* kernel) {
            Floats& y = results.emplace_back(rows * out, 0.5F);
            const LinearArgs args = {{weights.matrix, bias.data(), y.data(), rows}, /*accumulate=*/true};
            kernel(x, args, 0, 1);
            kernel(x, args, 1, tiles(out));
          });
          return results;
        };
        EXPECT(products(KERNELS_BF16(linear_blocks_kernel)) == products(KERNELS_BF16(linear_tiles_kernel)));
      }
    }
  }
}

void several_products_run_in_one_loop() {
  const int rows = 3;
  const int64_t in = 96;
  const Floats data = random_floats(rows * in, 6);
  for (const Kind& kind : kKinds) {
    const Weights first(37, in, kind, 7);
    const Weights second(16, in, kind, 8);
    const Weights third(37, in, kind, 9);
    LinearInput input(rows, in);
    ThreadTeam team(3);
    const LinearInputRows x = input.prepare(data.data(), rows, in, first.matrix.type, team);
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
                 {{third.matrix, nullptr, up.data(), rows}, false}, Activation::silu, nullptr, team);
    for (size_t i = 0; i < gated.size(); ++i) {
      const double gate = expected[0][i];
      EXPECT(near(gated[i], gate / (1.0 + std::exp(-gate)) * expected[2][i], 1e-5));
    }
  }
}

void prefill_multiplies_as_decode_does() {
  ThreadTeam team(2);
  const int rows = 70;
  const int64_t in = 96;
  const int64_t out = 33;
  const Floats data = random_floats(rows * in, 10);
  const Floats bias = random_floats(out, 11);
  for (const Kind& kind : kKinds) {
    const Weights weights(out, in, kind, 12);
    LinearInput input(rows, in);
    const LinearInputRows x = input.prepare(data.data(), rows, in, weights.matrix.type, team);
    Floats decoded(rows * out, 1.0F);
    Floats prefilled(rows * out, 1.0F);
    linear(x, {{weights.matrix, bias.data(), decoded.data(), rows}, true}, team);
    const LinearArgs prompt = {{weights.matrix, bias.data(), prefilled.data(), rows}, true};
    linear_prefill(x, std::span(&prompt, 1), team);
    for (size_t i = 0; i < decoded.size(); ++i) {
      // Without dot products of bfloat16, prefill does not round x, by up to 1/512.
      const double tolerance = kind.type == MatrixType::bfloat16 ? 4e-3 * (4.0 + std::abs(decoded[i])) : 1e-4;
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
    const auto sums_values = [&](const GroupSums& sums, int64_t inputs) {
      for (int64_t group = 0; group < y.stride / inputs; ++group) {
        int32_t sum = 0;
        for (int64_t i = 0; i < inputs; ++i) {
          sum += y.value[group * inputs + i];
        }
        EXPECT(sums.value[group] == sum);
        EXPECT(sums.scaled[group] == static_cast<float>(sum) * y.scale[group * inputs / kInputGroup]);
      }
    };
    sums_values(y.sums, kInputGroup);
    sums_values(y.half_sums, kHalfGroup);
    EXPECT(y.scale[1] == 0.0F);
  });
}

void products_of_one_loop_may_differ_in_type() {
  ThreadTeam team(2);
  const int rows = 3;
  const int64_t in = 96;
  const Floats data = random_floats(rows * in, 17);
  LinearInput input(rows, in);
  const LinearInputRows x = input.prepare(data.data(), rows, in, MatrixType::int4, team);
  std::vector<Weights> weights;
  for (const Kind& kind : kKinds) {
    if (is_quantized(kind.type)) {
      weights.emplace_back(21, in, kind, 18);
    }
  }
  std::vector<Floats> together(weights.size(), Floats(rows * 21));
  std::vector<LinearArgs> products;
  for (size_t i = 0; i < weights.size(); ++i) {
    products.push_back({{weights[i].matrix, nullptr, together[i].data(), rows}, false});
  }
  linear(x, products, team);
  for (size_t i = 0; i < weights.size(); ++i) {
    Floats alone(rows * 21);
    linear(x, {{weights[i].matrix, nullptr, alone.data(), rows}, false}, team);
    EXPECT(alone == together[i]);
  }
}

// Values that are not finite must reach the logits, where a check names the model.
void input_that_is_not_finite_shows() {
  ThreadTeam team(1);
  for (const float bad : {INFINITY, -INFINITY, NAN, std::bit_cast<float>(0x7fffffffU)}) {
    for (const Kind& kind : kKinds) {
      const Weights weights(20, 64, kind, 14);
      Floats data = random_floats(64, 15);
      data[40] = bad;
      LinearInput input(1, 64);
      for_each_linear_kernel(weights.matrix.type, [&](auto* kernel) {
        Floats y(20);
        kernel(input.prepare(data.data(), 1, 64, weights.matrix.type, team),
               {{weights.matrix, nullptr, y.data(), 1}, false}, 0, 2);
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
  const Tiles eight = quantize(weight, MatrixType::int8, 0, team);
  const at::Tensor back = values_of(matrix_of(eight, out, in, "weight"));
  for (int64_t i = 0; i < out * in; ++i) {
    const double scale = eight.scale.const_data_ptr<float>()[i / in];
    EXPECT(std::abs(back.const_data_ptr<double>()[i] - random[i]) <= 0.5001 * scale);
  }
  for (const int64_t group : {32, 64}) {
    const Tiles four = quantize(weight, MatrixType::int4, group, team);
    const at::Tensor near_weight = values_of(matrix_of(four, out, in, "weight"));
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
          error += std::pow(near_weight.const_data_ptr<double>()[o * in + i] - value, 2);
          plain += std::pow(rounded - value, 2);
        }
      }
    }
    EXPECT(error < 0.8 * plain);
    EXPECT(error > 0.3 * plain);
  }
}

void packing_keeps_every_number() {
  ThreadTeam team(2);
  for (const PackedKind& kind : kPackedKinds) {
    for (const int64_t in : {5, 64, 320, 513}) {
      for (const int64_t out : {1, 16, 37}) {
        const PackedMatrix packed = random_packed(kind, out, in, 19);
        const Tiles tiles = pack(packed, team);
        EXPECT(at::equal(values_of(matrix_of(tiles, out, in, kind.name)), values_of(packed)));
      }
    }
  }
}

void packing_refuses_what_tiles_do_not_hold() {
  ThreadTeam team(1);
  const PackedKind plain = {"plain", 4, true, 32, at::kHalf, Origin::middle};
  const auto refuses = [&](const PackedKind& kind, auto&& change) {
    PackedMatrix packed = random_packed(kind, 4, 512, 20);
    pack(packed, team);
    change(packed);
    EXPECT_THROWS(pack(packed, team));
  };
  refuses(plain, [](PackedMatrix& packed) { packed.values[3][5] = 8; });
  refuses(plain, [](PackedMatrix& packed) { packed.values = packed.values.to(at::kInt); });
  refuses(plain, [](PackedMatrix& packed) { packed.bits = 9; });
  refuses(plain, [](PackedMatrix& packed) { packed.scale[1][2] = INFINITY; });
  refuses(plain, [](PackedMatrix& packed) { packed.scale = packed.scale.narrow(1, 0, 3); });
  refuses(plain, [](PackedMatrix& packed) { packed.scale = packed.scale.to(at::kDouble); });
  refuses(plain, [](PackedMatrix& packed) { packed.minimum = packed.scale.to(at::kFloat); });
  refuses(kPackedKinds[9], [](PackedMatrix& packed) { packed.zero[0][0] = 200; });
  refuses(kPackedKinds[9], [](PackedMatrix& packed) { packed.minimum = packed.scale; });
  refuses(kPackedKinds[7], [](PackedMatrix& packed) { packed.block_scale = at::Tensor(); });
  refuses(kPackedKinds[7], [](PackedMatrix& packed) { packed.block_scale = packed.block_scale.narrow(1, 0, 1); });
  refuses(kPackedKinds[7], [](PackedMatrix& packed) { packed.scale = packed.scale.to(at::kInt).add(200); });
  refuses(kPackedKinds[5], [](PackedMatrix& packed) { packed.block_minimum = at::Tensor(); });
  PackedMatrix wide = random_packed({"wide", 8, false, 32, at::kHalf, Origin::minimum}, 4, 64, 21);
  EXPECT_THROWS(pack(wide, team));  // 255 with a minimum
  for (const int64_t group : {8, 48, 16}) {
    EXPECT_THROWS(pack(random_packed({"odd", 8, true, group, at::kHalf, Origin::middle}, 4, 96, 22), team));
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

void embedding_reads_every_type() {
  const std::vector<int32_t> tokens = {36, -1, 17};
  for (const Kind& kind : kKinds) {
    for (const int64_t in : {1, 7, 64, 131, 544}) {
      const Weights weights(37, in, kind, 13);
      Floats y(3 * in, 7.0F);
      const DType dtype = kind.type == MatrixType::float32 ? DType::float32 : DType::bfloat16;
      embedding({weights.matrix, tokens.data(), y.data(), 3, 1, dtype, 2.0F});
      for (int64_t i = 0; i < 3 * in; ++i) {
        const int64_t token = tokens[i / in];
        EXPECT(near(y[i], token < 0 ? 0.0 : 2.0 * weights.values[token * in + i % in], 1e-5));
      }
    }
  }
}

}  // namespace
}  // namespace dlf::ops

int main() {
  using namespace dlf::ops;
  return dlf::testing::run({
      {"linear is a matrix product", linear_is_a_matrix_product},
      {"a row does not depend on the others", a_row_does_not_depend_on_the_others},
      {"blocks multiply as tiles do", blocks_multiply_as_tiles_do},
      {"several products run in one loop", several_products_run_in_one_loop},
      {"prefill multiplies as decode does", prefill_multiplies_as_decode_does},
      {"products of one loop may differ in type", products_of_one_loop_may_differ_in_type},
      {"packing keeps every number", packing_keeps_every_number},
      {"embedding reads every type", embedding_reads_every_type},
      {"packing refuses what tiles do not hold", packing_refuses_what_tiles_do_not_hold},
      {"input is rounded to the nearest", input_is_rounded_to_the_nearest},
      {"input that is not finite shows", input_that_is_not_finite_shows},
      {"quantized weights are near", quantized_weights_are_near},
      {"quantizing refuses what it cannot do", quantizing_refuses_what_it_cannot_do},
  });
}
