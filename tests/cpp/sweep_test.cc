// Compares the sweeps of every instruction set with plain loops in double precision.
#include "fusion/cpu/sweep.h"

#include <cmath>
#include <limits>
#include <random>
#include <vector>

#include "check.h"
#include "fusion/solver_math.h"
#include "kernels.h"

namespace dlf {
namespace {

using Row = std::vector<float>;
using testing::for_each_kernel;

Row normal(int64_t size, double scale, std::mt19937& generator) {
  std::normal_distribution<float> draw(0.0F, static_cast<float>(scale));
  Row row(size);
  for (float& value : row) {
    value = draw(generator);
  }
  return row;
}

// Sums over the tokens that `large` allows, with logits start + α(expert − base − centre).
BlockSum plain(const Row& large, const Row& start, const Row& expert, const Row& base, double centre, double alpha) {
  BlockSum total = {-HUGE_VAL, 0.0, 0.0, 0.0};
  const auto delta = [&](size_t i) { return static_cast<double>(expert[i]) - base[i] - centre; };
  for (size_t i = 0; i < large.size(); ++i) {
    if (large[i] != -HUGE_VALF) {
      total.peak = std::fmax(total.peak, start[i] + alpha * delta(i));
    }
  }
  for (size_t i = 0; i < large.size(); ++i) {
    if (large[i] != -HUGE_VALF) {
      const double weight = std::exp(start[i] + alpha * delta(i) - total.peak);
      total.weight += weight;
      total.first += weight * delta(i);
      total.second += weight * delta(i) * delta(i);
    }
  }
  return total;
}

// Compares sums whose peaks may differ; `second` only where the sweep took it.
void expect_same(const BlockSum& found, const BlockSum& expected, double reach) {
  EXPECT(std::fabs(std::log(found.weight) + found.peak - std::log(expected.weight) - expected.peak) < 1e-11);
  EXPECT(std::fabs(found.first / found.weight - expected.first / expected.weight) < 1e-11 * reach);
  EXPECT(found.second == 0.0 ||
         std::fabs(found.second / found.weight - expected.second / expected.weight) < 1e-11 * reach * reach);
}

// Differences of 1 keep to one walk along α; those of hundreds restart it, those of thousands at every α.
void ranges_hold_at_any_difference() {
  std::mt19937 generator(1);
  for (const int64_t size : {1, 7, 16, 1000, 1024}) {
    for (const double scale : {0.0, 1.0, 100.0, 5000.0}) {
      Row large = normal(size, 3.0, generator);
      large[size / 2] = size > 1 ? -HUGE_VALF : 0.0F;
      const Row bases[] = {normal(size, 2.0, generator), normal(size, 2.0, generator)};
      const Row tuned[] = {normal(size, scale, generator), normal(size, scale, generator),
                           normal(size, scale, generator)};
      const float* expert[] = {tuned[0].data(), tuned[1].data(), tuned[2].data()};
      const float* base[] = {bases[0].data(), bases[0].data(), bases[1].data()};
      const double centre[] = {0.0, 0.25, -1.0};
      for (const AlphaRange range : {AlphaRange{0.0, 2.0, 9}, AlphaRange{0.0, 0.7, 9}, AlphaRange{0.0, 0.0, 1}}) {
        for_each_kernel(KERNELS(sweep_row), [&](auto* sweep) {
          std::vector<BlockSum> sums(3 * 11, {0.0, NAN, NAN, NAN});
          const AlphaRange ranges[] = {range, range, range};
          sweep({large.data(), expert, base, centre, 3, 0, size, ranges, sums.data(), nullptr, 11, 1});
          for (int t = 0; t < 3; ++t) {
            const Row& under = bases[t / 2];
            const double reach = 6.0 + 5.0 * scale;
            for (int k = 0; k < range.count; ++k) {
              expect_same(sums[11 * t + k], plain(large, large, tuned[t], under, centre[t], alpha_of(range, k)), reach);
            }
            for (int k = 0; k < 2; ++k) {
              expect_same(sums[11 * t + range.count + k], plain(large, under, tuned[t], under, centre[t], k), reach);
            }
          }
        });
      }
      const AlphaRange ranges[] = {{0.3, 0.5, 3}, {1.0, 1.0, 1}, {1.25, 2.0, 6}};
      for_each_kernel(KERNELS(sweep_curve), [&](auto* sweep) {
        std::vector<BlockSum> sums(10, {0.0, NAN, NAN, NAN});
        sweep({large.data(), expert[1], base[1], centre[1], 0, size, ranges, 3, sums.data()});
        const BlockSum* sum = sums.data();
        for (const AlphaRange& range : ranges) {
          for (int k = 0; k < range.count; ++k, ++sum) {
            expect_same(*sum, plain(large, large, tuned[1], bases[0], centre[1], alpha_of(range, k)),
                        6.0 + 5.0 * scale);
          }
        }
      });
    }
  }
}

// The large model nearly excludes the token with the largest difference.
void rare_tokens_are_not_lost() {
  Row large(100, 0.0F);
  Row base(100, 0.0F);
  Row expert(100, 0.0F);
  large[42] = -650.0F;
  expert[42] = 640.0F;
  const float* experts[] = {expert.data()};
  const float* bases[] = {base.data()};
  const double centre = 0.0;
  const AlphaRange range = {0.0, 2.0, 9};
  for_each_kernel(KERNELS(sweep_row), [&](auto* sweep) {
    BlockSum sums[11];
    sweep({large.data(), experts, bases, &centre, 1, 0, 100, &range, sums, nullptr, 11, 1});
    for (int k = 0; k < 9; ++k) {
      expect_same(sums[k], plain(large, large, expert, base, 0.0, alpha_of(range, k)), 640.0);
    }
  });
}

void fusing_sums_what_it_writes() {
  std::mt19937 generator(2);
  const int64_t size = 1001;
  Row large = normal(size, 3.0, generator);
  large[3] = -HUGE_VALF;
  const Row expert = normal(size, 1.0, generator);
  const Row base = normal(size, 1.0, generator);
  const float* experts[] = {base.data(), expert.data()};
  const float* bases[] = {base.data(), base.data()};
  const double alpha[] = {0.0, 0.75};
  const double centre[] = {9.0, 0.5};
  for_each_kernel(KERNELS(sweep_fuse), [&](auto* sweep) {
    Row fused = large;  // in place, as when a support was kept there
    BlockSum found;
    sweep({fused.data(), experts, bases, alpha, centre, 2, 0, size, fused.data(), &found});
    BlockSum expected = plain(large, large, expert, base, centre[1], alpha[1]);
    expected.first *= alpha[1];  // of δ = αΔ
    expect_same(found, expected, 6.0);
    for (int64_t i = 0; i < size; ++i) {
      const double logit = large[i] + 0.75 * (static_cast<double>(expert[i]) - base[i]);
      EXPECT(i == 3 ? fused[i] == -HUGE_VALF : std::fabs(fused[i] - logit) < 1e-6 * (1.0 + std::fabs(logit)));
    }
  });
}

}  // namespace
}  // namespace dlf

int main() {
  return dlf::testing::run({
      {"ranges hold at any difference", dlf::ranges_hold_at_any_difference},
      {"rare tokens are not lost", dlf::rare_tokens_are_not_lost},
      {"fusing sums what it writes", dlf::fusing_sums_what_it_writes},
  });
}
