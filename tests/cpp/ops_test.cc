// Every operation against its definition in double precision, for every instruction set that this processor has.
#include <c10/util/BFloat16.h>

#include <cmath>
#include <cstdint>
#include <utility>
#include <vector>

#include "check.h"
#include "ops/activation.h"
#include "ops/attention.h"
#include "ops/embedding.h"
#include "ops/norm.h"
#include "ops/rope.h"
#include "ops_testing.h"

namespace dlf::ops {
namespace {

void rms_norm_divides_by_the_root_mean_square() {
  for (const int64_t size : {1, 5, 64, 200}) {
    const Floats x = random_floats(3 * size, 9);
    const Floats weight = random_floats(size, 10);
    for_each_kernel(KERNELS(rms_norm_kernel), [&](auto* kernel) {
      Floats y = x;
      kernel({y.data(), weight.data(), y.data(), 3, size, 1e-5F}, 0, 3);  // in place
      for (int64_t r = 0; r < 3; ++r) {
        double squares = 0.0;
        for (int64_t i = 0; i < size; ++i) {
          squares += static_cast<double>(x[r * size + i]) * x[r * size + i];
        }
        for (int64_t i = 0; i < size; ++i) {
          EXPECT(near(y[r * size + i], x[r * size + i] / std::sqrt(squares / size + 1e-5) * weight[i], 1e-5));
        }
      }
    });
  }
}

void swiglu_gates() {
  Floats gate = random_floats(1003, 11);
  gate[0] = 100.0F;
  gate[1] = -100.0F;
  const Floats up = random_floats(1003, 12);
  for_each_kernel(KERNELS(swiglu_kernel), [&](auto* kernel) {
    Floats y = gate;
    kernel({y.data(), up.data(), y.data(), 1003}, 0, 500);
    kernel({y.data(), up.data(), y.data(), 1003}, 500, 1003);
    for (size_t i = 0; i < y.size(); ++i) {
      EXPECT(near(y[i], gate[i] / (1.0 + std::exp(-static_cast<double>(gate[i]))) * up[i], 1e-5));
    }
  });
}

void embedding_copies_rows() {
  for (const DType dtype : kTypes) {
    const Stored weight(random_floats(10 * 6, 13), dtype);
    const std::vector<Row> rows = {{9, 0, 0}, {0, 1, 3}, {4, 0, 1}};
    Floats y(18);
    embedding({weight.bytes.data(), rows.data(), y.data(), 3, 6, dtype});
    for (size_t r = 0; r < rows.size(); ++r) {
      for (int64_t i = 0; i < 6; ++i) {
        EXPECT(y[r * 6 + i] == weight.values[rows[r].token * 6 + i]);
      }
    }
  }
}

void rope_rotates_and_fills_the_cache() {
  const int64_t heads = 4, kv_heads = 2, dim = 10, half = 5, context = 2 * kCacheBlock, slots = 2;
  const std::vector<Row> rows = {{0, 1, 70}, {0, 0, 0}, {0, 1, 3}};
  const Floats q = random_floats(3 * heads * dim, 14);
  const Floats k = random_floats(3 * kv_heads * dim, 15);
  const Floats v = random_floats(3 * kv_heads * dim, 16);
  Floats cos(context * half), sin(context * half);
  for (int64_t i = 0; i < context * half; ++i) {
    cos[i] = static_cast<float>(std::cos(0.1 * static_cast<double>(i)));
    sin[i] = static_cast<float>(std::sin(0.1 * static_cast<double>(i)));
  }
  const auto rotated = [&](const float* x, int64_t i, int64_t position) {
    const int64_t j = i % half;
    const double other = i < half ? -x[i + half] : x[i - half];
    return x[i] * static_cast<double>(cos[position * half + j]) + other * sin[position * half + j];
  };
  for (const DType dtype : kTypes) {
    const double tolerance = dtype == DType::float32 ? 1e-6 : 1.0 / 256;
    for_each_kernel(KERNELS(rope_and_cache_kernel), [&](auto* kernel) {
      Floats turned = q;
      Stored keys(Floats(slots * kv_heads * context * dim, 7.0F), dtype);
      Stored values = keys;
      kernel({turned.data(), k.data(), v.data(), keys.bytes.data(), values.bytes.data(), cos.data(), sin.data(),
              rows.data(), 3, heads, kv_heads, dim, context, dtype},
             0, 3);
      int64_t touched[2] = {};
      for (int64_t i = 0; i < slots * kv_heads * context * dim; ++i) {
        touched[0] += element(keys, i) != 7.0;
        touched[1] += element(values, i) != 7.0;
      }
      EXPECT(touched[0] == 3 * kv_heads * dim && touched[1] == 3 * kv_heads * dim);
      for (int64_t r = 0; r < 3; ++r) {
        for (int64_t i = 0; i < heads * dim; ++i) {
          const int64_t first = r * heads * dim + i / dim * dim;
          EXPECT(near(turned[r * heads * dim + i], rotated(&q[first], i % dim, rows[r].position), 1e-6));
        }
        for (int64_t i = 0; i < kv_heads * dim; ++i) {
          const int64_t first = r * kv_heads * dim + i / dim * dim;
          const int64_t slot = cache_offset(rows[r].slot, i / dim, kv_heads, context, dim);
          const int64_t key = slot + key_offset(rows[r].position, i % dim, dim);
          const int64_t at = slot + rows[r].position * dim + i % dim;
          EXPECT(near(element(keys, key), rotated(&k[first], i % dim, rows[r].position), tolerance));
          EXPECT(near(element(values, at), v[r * kv_heads * dim + i], tolerance));
        }
      }
    });
  }
}

AttentionArgs attention_args(const Floats& q, const Stored& keys, const Stored& values, Floats& y,
                             const std::vector<Row>& rows, int64_t heads, int64_t kv_heads, int64_t dim,
                             int64_t capacity, int64_t window) {
  const auto scale = static_cast<float>(1.0 / std::sqrt(static_cast<double>(dim)));
  const auto count = static_cast<int64_t>(rows.size());
  return {q.data(),
          keys.bytes.data(),
          values.bytes.data(),
          y.data(),
          rows.data(),
          count,
          heads,
          kv_heads,
          dim,
          capacity,
          window,
          scale,
          keys.dtype};
}

void attention_averages_the_values_that_a_row_sees() {
  const int64_t kv_heads = 2, context = 2 * kCacheBlock, slots = 2;
  for (const auto& [heads, dim] : {std::pair{6L, 4L}, {2L, 64L}, {10L, 80L}, {14L, 64L}, {8L, 30L}, {16L, 128L}}) {
    const std::vector<Row> rows = {{0, 0, 0}, {0, 1, 69}, {0, 0, 33}, {0, 0, 127}};
    const auto count = static_cast<int64_t>(rows.size());
    const Floats q = random_floats(count * heads * dim, 17);
    const auto scale = static_cast<float>(1.0 / std::sqrt(static_cast<double>(dim)));
    for (const DType dtype : kTypes) {
      const Stored keys(random_floats(slots * kv_heads * context * dim, 18), dtype);
      const Stored values(random_floats(slots * kv_heads * context * dim, 19), dtype);
      for (const int64_t window : {0, 1, 20, 70}) {
        for_each_kernel(KERNELS(attention_kernel), [&](auto* kernel) {
          Floats y(count * heads * dim);
          const AttentionArgs args = attention_args(q, keys, values, y, rows, heads, kv_heads, dim, context, window);
          kernel(args, 0, 1);
          kernel(args, 1, count * kv_heads * head_groups(args));
          for (int64_t item = 0; item < count * heads; ++item) {
            const Row& row = rows[item / heads];
            const int64_t head = item % heads / (heads / kv_heads);
            const int64_t first = window == 0 ? 0 : std::max<int64_t>(0, row.position - window + 1);
            std::vector<double> sum(dim, 0.0);
            double total = 0.0;
            for (int64_t p = first; p <= row.position; ++p) {
              const int64_t slot = cache_offset(row.slot, head, kv_heads, context, dim);
              const int64_t at = slot + p * dim;
              double score = 0.0;
              for (int64_t i = 0; i < dim; ++i) {
                score += static_cast<double>(q[item * dim + i]) * keys.values[slot + key_offset(p, i, dim)];
              }
              const double weight = std::exp(score * scale);
              total += weight;
              for (int64_t i = 0; i < dim; ++i) {
                sum[i] += weight * values.values[at + i];
              }
            }
            for (int64_t i = 0; i < dim; ++i) {
              EXPECT(near(y[item * dim + i], sum[i] / total, 1e-5));
            }
          }
        });
      }
    }
  }
}

void prefill_attention_equals_attention() {
  const int64_t heads = 6, kv_heads = 2, context = 5 * kCacheBlock;
  ThreadTeam team(2);
  for (const int64_t dim : {4, 20, 64, 80, 96}) {
    for (const int64_t begin : {0, 37, 150}) {
      for (const int64_t count : {1, 31, 100}) {
        std::vector<Row> rows;
        for (int64_t i = 0; i < count; ++i) {
          rows.push_back({0, 1, begin + i});
        }
        const Floats q = random_floats(count * heads * dim, 20);
        for (const DType dtype : kTypes) {
          const Stored keys(random_floats(2 * kv_heads * context * dim, 21), dtype);
          const Stored values(random_floats(2 * kv_heads * context * dim, 22), dtype);
          for (const int64_t window : {0, 1, 20, 90}) {
            Floats expected(count * heads * dim);
            const auto make_args = [&](Floats& y) {
              return attention_args(q, keys, values, y, rows, heads, kv_heads, dim, context, window);
            };
            attention(make_args(expected), team);
            const auto compare = [&](const Floats& y) {
              for (size_t i = 0; i < y.size(); ++i) {
                EXPECT(near(y[i], expected[i], 1e-5));
              }
            };
            for_each_kernel(KERNELS(prefill_attention_kernel), [&](auto* kernel) {
              Floats y(expected.size());
              Floats scratch(3 * kCacheBlock * dim + 3 * kPrefillChunk * dim);
              std::vector<RunningSoftmax> queries(3 * kPrefillChunk);
              const int64_t block = kCacheBlock * dim;
              kernel(make_args(y), {scratch.data(), scratch.data() + block, scratch.data() + 2 * block, queries.data()},
                     0, kv_heads * ((count + kPrefillChunk - 1) / kPrefillChunk));
              compare(y);
            });
            Floats threaded(expected.size());
            prefill_attention(make_args(threaded), team);
            compare(threaded);
          }
        }
      }
    }
  }
}

}  // namespace
}  // namespace dlf::ops

int main() {
  using namespace dlf::ops;
  return dlf::testing::run({
      {"rms_norm divides by the root mean square", rms_norm_divides_by_the_root_mean_square},
      {"swiglu gates", swiglu_gates},
      {"embedding copies rows", embedding_copies_rows},
      {"rope rotates and fills the cache", rope_rotates_and_fills_the_cache},
      {"attention averages the values that a row sees", attention_averages_the_values_that_a_row_sees},
      {"prefill attention equals attention", prefill_attention_equals_attention},
  });
}
