// Compares low-rank updates with double precision, for every instruction set of this processor.
#include "ops/cpu/lora.h"

#include <algorithm>

#include "check.h"
#include "ops/cpu/linear.h"
#include "ops_testing.h"

namespace dlf::ops {
namespace {

MatrixType matrix_type(DType dtype) { return dtype == DType::float32 ? MatrixType::float32 : MatrixType::bfloat16; }

// The two factors of one layer's update.
struct Factors {
  Stored a;  // [rank, in]
  Stored b;  // [rank, out]
  int64_t rank, in, out;
  float scale;

  Factors(int64_t rank_, int64_t in_, int64_t out_, DType dtype, uint32_t seed)
      : a(random_floats(rank_ * in_, seed), dtype),
        b(random_floats(rank_ * out_, seed + 1), dtype),
        rank(rank_),
        in(in_),
        out(out_),
        scale(1.5F / static_cast<float>(rank_)) {}

  LoraRun run(float* y, int row, int rows, float* inner) const {
    return {{a.bytes.data(), b.bytes.data(), scale, static_cast<int>(rank), static_cast<int>(out)},
            y + row * out,
            row,
            rows,
            inner};
  }
};

// Whether a float32 sum is right; `size` is the sum of its terms' magnitudes.
bool is_sum(double found, double expected, double size) { return std::abs(found - expected) <= 2e-6 * (1.0 + size); }

void the_way_back_is_a_product() {
  const int rows = 3;
  for (const DType dtype : kTypes) {
    for (const int64_t rank : {1, 5, 16, 40}) {
      for (const int64_t out : {int64_t{1}, int64_t{37}, kLoraOutputs, kLoraOutputs + 83}) {
        const Factors factors(rank, 8, out, dtype, 1);
        Floats inner = random_floats(rows * rank, 3);
        const Floats before = random_floats(rows * out, 4);
        for_each_kernel(KERNELS(lora_kernel), [&](auto* kernel) {
          Floats y = before;
          const LoraRun run = factors.run(y.data(), 0, rows, inner.data());
          for (int64_t chunk = 0; chunk * kLoraOutputs < out; ++chunk) {
            kernel(run, matrix_type(dtype), chunk, chunk + 1);
          }
          for (int64_t i = 0; i < rows * out; ++i) {
            double expected = before[i];
            double size = std::abs(expected);
            for (int64_t r = 0; r < rank; ++r) {
              const double term =
                  factors.scale * static_cast<double>(inner[i / out * rank + r]) * factors.b.values[r * out + i % out];
              expected += term;
              size += std::abs(term);
            }
            EXPECT(is_sum(y[i], expected, size));
          }
        });
      }
    }
  }
}

// Applies updates of several ranks to different rows in one call; the rows between them have none.
void updates_are_low_rank_products() {
  const int rows = 9;
  const int64_t in = 131;
  for (const DType dtype : kTypes) {
    for (const int threads : {1, 3}) {
      ThreadTeam team(threads);
      const Floats data = random_floats(rows * in, 5);
      LinearInput input(rows, in);
      const LinearInputRows x = input.prepare(data.data(), rows, in, matrix_type(dtype), team);
      const Stored read(data, dtype);  // as a product reads it
      const Factors wide(24, in, 300, dtype, 6), thin(2, in, 300, dtype, 8), other(17, in, 37, dtype, 10);
      const Floats before = random_floats(rows * 300, 12);
      const Floats before_other = random_floats(rows * 37, 13);
      Floats y = before;
      Floats y_other = before_other;
      Floats inner(4 * 24 + 2 * 2 + 4 * 17);
      float* after_wide = inner.data() + int64_t{4} * 24;
      const LoraRun runs[] = {wide.run(y.data(), 1, 4, inner.data()),
                              other.run(y_other.data(), 1, 4, after_wide + int64_t{2} * 2),
                              thin.run(y.data(), 6, 2, after_wide)};
      lora(x, runs, matrix_type(dtype), team);
      const auto check = [&](const Floats& found, const Floats& from, const Factors& factors, int64_t row) {
        for (int64_t o = 0; o < factors.out; ++o) {
          double expected = from[row * factors.out + o];
          double size = std::abs(expected);
          for (int64_t r = 0; r < factors.rank; ++r) {
            for (int64_t i = 0; i < in; ++i) {
              const double term = static_cast<double>(factors.scale) * read.values[row * in + i] *
                                  factors.a.values[r * in + i] * factors.b.values[r * factors.out + o];
              expected += term;
              size += std::abs(term);
            }
          }
          EXPECT(is_sum(found[row * factors.out + o], expected, size));
        }
      };
      for (int row = 0; row < rows; ++row) {
        const bool first = row >= 1 && row < 5;
        const bool second = row >= 6 && row < 8;
        if (first || second) {
          check(y, before, first ? wide : thin, row);
        } else {
          EXPECT(std::equal(&y[row * 300], &y[row * 300] + 300, &before[row * 300]));
        }
        if (first) {
          check(y_other, before_other, other, row);
        } else {
          EXPECT(std::equal(&y_other[row * 37], &y_other[row * 37] + 37, &before_other[row * 37]));
        }
      }
    }
  }
}

void a_row_does_not_depend_on_the_others() {
  const int rows = 11;
  const int64_t in = 96;
  const int64_t out = 333;
  const Floats data = random_floats(rows * in, 14);
  for (const DType dtype : kTypes) {
    const Factors factors(19, in, out, dtype, 15);
    LinearInput input(rows, in);
    ThreadTeam team(3);
    Floats together(rows * out, 0.5F);
    Floats inner(rows * factors.rank);
    const LoraRun all[] = {factors.run(together.data(), 0, rows, inner.data())};
    lora(input.prepare(data.data(), rows, in, matrix_type(dtype), team), all, matrix_type(dtype), team);
    ThreadTeam one(1);
    for (int row = 0; row < rows; ++row) {
      Floats alone(out, 0.5F);
      const LoraRun single[] = {factors.run(alone.data(), 0, 1, inner.data())};
      lora(input.prepare(data.data() + row * in, 1, in, matrix_type(dtype), one), single, matrix_type(dtype), one);
      EXPECT(std::equal(alone.begin(), alone.end(), together.begin() + row * out));
    }
  }
}

}  // namespace
}  // namespace dlf::ops

int main() {
  using namespace dlf::ops;
  return dlf::testing::run({
      {"the way back is a product", the_way_back_is_a_product},
      {"updates are low-rank products", updates_are_low_rank_products},
      {"a row does not depend on the others", a_row_does_not_depend_on_the_others},
  });
}
