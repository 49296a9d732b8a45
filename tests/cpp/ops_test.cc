// Compares every operation with its definition in double precision, for every instruction set of this processor.
#include <c10/util/BFloat16.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <utility>
#include <vector>

#include "check.h"
#include "ops/cpu/activation.h"
#include "ops/cpu/attention.h"
#include "ops/cpu/embedding.h"
#include "ops/cpu/norm.h"
#include "ops/cpu/rope.h"
#include "ops_testing.h"

namespace dlf::ops {
namespace {

// Checks that the rows of y are those of x, divided by their root mean square and times the weight.
void check_normed(const Floats& y, const Floats& x, const Floats& weight) {
  const auto size = static_cast<int64_t>(weight.size());
  for (int64_t r = 0; r < 3; ++r) {
    double squares = 0.0;
    for (int64_t i = 0; i < size; ++i) {
      squares += static_cast<double>(x[r * size + i]) * x[r * size + i];
    }
    for (int64_t i = 0; i < size; ++i) {
      EXPECT(near(y[r * size + i], x[r * size + i] / std::sqrt(squares / size + 1e-5) * weight[i], 1e-5));
    }
  }
}

void rms_norm_divides_by_the_root_mean_square() {
  for (const int size : {1, 5, 64, 200}) {
    const Floats x = random_floats(int64_t{3} * size, 9);
    const Floats branch = random_floats(int64_t{3} * size, 8);
    const Floats weight = random_floats(size, 10);
    Floats sum = x;
    for (size_t i = 0; i < sum.size(); ++i) {
      sum[i] += branch[i];
    }
    for_each_kernel(KERNELS(rms_norm_kernel), [&](auto* kernel) {
      Floats y = x;
      kernel({y.data(), nullptr, weight.data(), y.data(), 3, size, 1e-5F, DType::float32}, 0, 3);  // in place
      check_normed(y, x, weight);
      Floats hidden = x;
      kernel({hidden.data(), branch.data(), weight.data(), y.data(), 3, size, 1e-5F, DType::float32}, 0, 3);
      EXPECT(hidden == sum);
      check_normed(y, sum, weight);
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
    const SwiGluArgs in_place = {y.data(), up.data(), 1003, y.data(), 1, 1003, DType::float32};
    kernel(in_place, 0, 500);
    kernel(in_place, 500, 1003);
    const auto gated = [&](size_t i) { return gate[i] / (1.0 + std::exp(-static_cast<double>(gate[i]))) * up[i]; };
    for (size_t i = 0; i < y.size(); ++i) {
      EXPECT(near(y[i], gated(i), 1e-5));
    }
    Floats some(3 * 101, 7.0F);  // longer rows
    kernel({gate.data(), up.data(), 300, some.data(), 3, 101, DType::float32}, 0, 250);
    for (size_t i = 0; i < some.size(); ++i) {
      EXPECT(i < 250 ? near(some[i], gated(i / 101 * 300 + i % 101), 1e-5) : some[i] == 7.0F);
    }
  });
}

void embedding_copies_rows() {
  for (const DType dtype : kTypes) {
    const Stored weight(random_floats(10 * 6, 13), dtype);
    const std::vector<int32_t> tokens = {9, -1, 4};
    Floats y(int64_t{6} * 6, 7.0F);
    embedding({weight.bytes.data(), tokens.data(), y.data(), 6, 2, 6, dtype});
    for (int64_t i = 0; i < 36; ++i) {
      const int32_t token = tokens[i / 12];
      EXPECT(y[i] == (token < 0 ? 0.0F : weight.values[token * 6 + i % 6]));
    }
  }
}

// The result is that of norming each head first.
void rope_norms_heads_where_asked() {
  constexpr int kHeads = 3, kKvHeads = 1, kDim = 16, kRows = 2, kCapacity = kCacheBlock;
  ThreadTeam team(1);
  const Floats q = random_floats(kRows * kHeads * kDim, 23);
  const Floats k = random_floats(kRows * kKvHeads * kDim, 24);
  const Floats v = random_floats(kRows * kKvHeads * kDim, 25);
  const Floats norms = random_floats(2 * kDim, 26);
  const Floats angles = random_floats(2 * kCapacity * kDim / 2, 27);
  const auto run = [&](Floats queries, Floats keys, bool normed) {
    Floats cache(2 * kCapacity * kDim);
    RopeArgs args = {};
    args.q = queries.data();
    args.k = keys.data();
    args.v = v.data();
    args.q_stride = kHeads * kDim;
    args.kv_stride = kKvHeads * kDim;
    args.k_cache = cache.data();
    args.v_cache = cache.data() + kCapacity * kDim;
    args.cos = angles.data();
    args.sin = angles.data() + kCapacity * kDim / 2;
    args.q_norm = normed ? norms.data() : nullptr;
    args.k_norm = normed ? norms.data() + kDim : nullptr;
    args.epsilon = 1e-6F;
    args.places = prompt_places(kRows, 5, 0);
    args.heads = kHeads;
    args.kv_heads = kKvHeads;
    args.head_dim = kDim;
    args.capacity = kCapacity;
    args.dtype = DType::float32;
    rope_and_cache(args, team);
    queries.insert(queries.end(), cache.begin(), cache.end());
    return queries;
  };
  const auto normed = [&](Floats x, const float* weight) {
    const auto rows = static_cast<int>(x.size()) / kDim;
    rms_norm({x.data(), nullptr, weight, x.data(), rows, kDim, 1e-6F, DType::float32}, team);
    return x;
  };
  EXPECT(run(q, k, true) == run(normed(q, norms.data()), normed(k, norms.data() + kDim), false));
  EXPECT(run(q, k, true) != run(q, k, false));
}

void rope_rotates_and_fills_the_cache() {
  const int64_t heads = 4, kv_heads = 2, dim = 10, half = 5, context = 2 * kCacheBlock, slots = 2;
  const std::vector<int32_t> position = {70, 0, 3, -1};
  const std::vector<int32_t> slot_of = {1, 0, 1, 0};
  const Floats q = random_floats(4 * heads * dim, 14);
  const Floats k = random_floats(4 * kv_heads * dim, 15);
  const Floats v = random_floats(4 * kv_heads * dim, 16);
  Floats cos(context * half), sin(context * half);
  for (int64_t i = 0; i < context * half; ++i) {
    cos[i] = static_cast<float>(std::cos(0.1 * static_cast<double>(i)));
    sin[i] = static_cast<float>(std::sin(0.1 * static_cast<double>(i)));
  }
  const auto rotated = [&](const float* x, int64_t i, int64_t at) {
    const int64_t j = i % half;
    const double other = i < half ? -x[i + half] : x[i - half];
    return x[i] * static_cast<double>(cos[at * half + j]) + other * sin[at * half + j];
  };
  for (const DType dtype : kTypes) {
    const double tolerance = dtype == DType::float32 ? 1e-6 : 1.0 / 256;
    for_each_kernel(KERNELS(rope_and_cache_kernel), [&](auto* kernel) {
      Floats turned = q;
      Stored keys(Floats(slots * kv_heads * context * dim, 7.0F), dtype);
      Stored values = keys;
      Floats unturned = k;
      RopeArgs args = {};
      args.q = turned.data();
      args.k = unturned.data();
      args.v = v.data();
      args.q_stride = heads * dim;
      args.kv_stride = kv_heads * dim;
      args.k_cache = keys.bytes.data();
      args.v_cache = values.bytes.data();
      args.cos = cos.data();
      args.sin = sin.data();
      args.places = {4, position.data(), 0, slot_of.data(), 0, 0};
      args.heads = heads;
      args.kv_heads = kv_heads;
      args.head_dim = dim;
      args.capacity = context;
      args.dtype = dtype;
      kernel(args, 0, 4);
      int64_t touched[2] = {};
      for (int64_t i = 0; i < slots * kv_heads * context * dim; ++i) {
        touched[0] += element(keys, i) != 7.0;
        touched[1] += element(values, i) != 7.0;
      }
      EXPECT(touched[0] == 3 * kv_heads * dim && touched[1] == 3 * kv_heads * dim);
      EXPECT(std::equal(&turned[3 * heads * dim], &turned[3 * heads * dim] + heads * dim, &q[3 * heads * dim]));
      for (int64_t r = 0; r < 3; ++r) {
        for (int64_t i = 0; i < heads * dim; ++i) {
          const int64_t first = r * heads * dim + i / dim * dim;
          EXPECT(near(turned[r * heads * dim + i], rotated(&q[first], i % dim, position[r]), 1e-6));
        }
        for (int64_t i = 0; i < kv_heads * dim; ++i) {
          const int64_t first = r * kv_heads * dim + i / dim * dim;
          const int64_t slot = cache_offset(slot_of[r], i / dim, kv_heads, context, dim);
          const int64_t key = slot + key_offset(position[r], i % dim, dim);
          const int64_t at = slot + position[r] * dim + i % dim;
          EXPECT(near(element(keys, key), rotated(&k[first], i % dim, position[r]), tolerance));
          EXPECT(near(element(values, at), v[r * kv_heads * dim + i], tolerance));
        }
      }
    });
  }
}

struct HeadShape {
  int heads;
  int kv_heads;
  int dim;
};

AttentionArgs attention_args(const Floats& q, const Stored& keys, const Stored& values, Floats& y, const Places& places,
                             const HeadShape& shape, int capacity, int window) {
  const auto scale = static_cast<float>(1.0 / std::sqrt(static_cast<double>(shape.dim)));
  return {q.data(),
          shape.heads * shape.dim,
          keys.bytes.data(),
          values.bytes.data(),
          y.data(),
          places,
          shape.heads,
          shape.kv_heads,
          shape.dim,
          capacity,
          window,
          scale,
          keys.dtype};
}

void attention_averages_the_values_that_a_row_sees() {
  const int kv_heads = 2, context = 2 * kCacheBlock, slots = 2;
  for (const auto& [heads, dim] : {std::pair{6, 4}, {2, 64}, {10, 80}, {14, 64}, {8, 30}, {16, 128}}) {
    const std::vector<int32_t> position = {0, 69, 33, 127, -1};
    const std::vector<int32_t> slot_of = {0, 1, 0, 0, 1};
    const int64_t count = 5;
    const Places places = {count, position.data(), 0, slot_of.data(), 0, 0};
    const Floats q = random_floats(count * heads * dim, 17);
    const auto scale = static_cast<float>(1.0 / std::sqrt(static_cast<double>(dim)));
    for (const DType dtype : kTypes) {
      const Stored keys(random_floats(slots * kv_heads * context * dim, 18), dtype);
      const Stored values(random_floats(slots * kv_heads * context * dim, 19), dtype);
      for (const int window : {0, 1, 20, 70}) {
        for_each_kernel(KERNELS(attention_kernel), [&](auto* kernel) {
          Floats y(count * heads * dim, 7.0F);
          const HeadShape shape = {heads, kv_heads, dim};
          const AttentionArgs args = attention_args(q, keys, values, y, places, shape, context, window);
          kernel(args, 0, 1);
          kernel(args, 1, count * kv_heads * head_groups(args));
          for (int64_t item = 0; item < count * heads; ++item) {
            const int64_t last = position[item / heads];
            if (last < 0) {
              EXPECT(std::all_of(&y[item * dim], &y[item * dim] + dim, [](float value) { return value == 0.0F; }));
              continue;
            }
            const int64_t head = item % heads / (heads / kv_heads);
            const int64_t first = window == 0 ? 0 : std::max<int64_t>(0, last - window + 1);
            std::vector<double> sum(dim, 0.0);
            double total = 0.0;
            for (int64_t p = first; p <= last; ++p) {
              const int64_t slot = cache_offset(slot_of[item / heads], head, kv_heads, context, dim);
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
  const int heads = 6, kv_heads = 2, context = 5 * kCacheBlock;
  ThreadTeam team(2);
  for (const int dim : {4, 20, 64, 80, 96}) {
    for (const int begin : {0, 37, 150}) {
      for (const int count : {1, 31, 100}) {
        const Places places = prompt_places(count, begin, 1);
        const Floats q = random_floats(count * heads * dim, 20);
        for (const DType dtype : kTypes) {
          const Stored keys(random_floats(2 * kv_heads * context * dim, 21), dtype);
          const Stored values(random_floats(2 * kv_heads * context * dim, 22), dtype);
          for (const int window : {0, 1, 20, 90}) {
            Floats expected(count * heads * dim);
            const auto make_args = [&](Floats& y) {
              return attention_args(q, keys, values, y, places, {heads, kv_heads, dim}, context, window);
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
      {"rope norms heads where asked", rope_norms_heads_where_asked},
      {"attention averages the values that a row sees", attention_averages_the_values_that_a_row_sees},
      {"prefill attention equals attention", prefill_attention_equals_attention},
  });
}
