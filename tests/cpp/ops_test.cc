// Compares every operation with its definition in double precision, for every instruction set of this processor.
#include <c10/util/BFloat16.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <utility>
#include <vector>

#include "check.h"
#include "ops/cpu/activation.h"
#include "ops/cpu/attention.h"
#include "ops/cpu/embedding.h"
#include "ops/cpu/logits.h"
#include "ops/cpu/norm.h"
#include "ops/cpu/rope.h"
#include "ops_testing.h"

namespace dlf::ops {
namespace {

// Blocks of two slots, interleaved and backwards.
const std::vector<int32_t> kBlocks = {9, 7, 5, 3, 1, 8, 6, 4, 2, 0};
constexpr int64_t kBlocksOfSlot = 5;
const BlockTable kTwoSlots = {kBlocks.data(), kBlocksOfSlot};
constexpr int64_t kCached = 2 * kBlocksOfSlot * kCacheBlock;  // positions

// The norm of one value of a row, in double precision.
double normed(const Floats& x, int64_t size, int64_t at, const NormOf& norm) {
  const int64_t first = at / size * size;
  double mean = 0.0;
  for (int64_t i = 0; norm.kind == NormKind::layer && i < size; ++i) {
    mean += x[first + i] / static_cast<double>(size);
  }
  double squares = 0.0;
  for (int64_t i = 0; i < size; ++i) {
    squares += (x[first + i] - mean) * (x[first + i] - mean);
  }
  const double bias = norm.bias != nullptr ? norm.bias[at - first] : 0.0;
  return (x[at] - mean) / std::sqrt(squares / size + norm.epsilon) * norm.weight[at - first] + bias;
}

void norms_are_those_of_their_definitions() {
  for (const int size : {1, 5, 64, 200}) {
    Floats x = random_floats(int64_t{3} * size, 9);
    for (float& value : x) {
      value += 3.0F;  // far from centred
    }
    const Floats branch = random_floats(int64_t{3} * size, 8);
    const Floats weight = random_floats(size, 10);
    const Floats bias = random_floats(size, 7);
    Floats sum = x;
    Floats shared = x;
    for (size_t i = 0; i < sum.size(); ++i) {
      sum[i] += branch[i];
      shared[i] += branch[i] * 0.5F;
    }
    for (const NormOf& of : {NormOf{weight.data(), 1e-5F},
                             {weight.data(), 1e-2F, NormKind::layer, bias.data()},
                             {weight.data(), 1e-2F, NormKind::layer}}) {
      for_each_kernel(KERNELS(norm_kernel), [&](auto* kernel) {
        const auto check = [&](const Floats& y, const Floats& from) {
          for (size_t i = 0; i < y.size(); ++i) {
            EXPECT(near(y[i], normed(from, size, static_cast<int64_t>(i), of), 1e-5));
          }
        };
        Floats y = x;
        kernel({y.data(), nullptr, y.data(), 3, size, of, DType::float32}, 0, 3);  // in place
        check(y, x);
        Floats hidden = x;
        kernel({hidden.data(), branch.data(), y.data(), 3, size, of, DType::float32}, 0, 3);
        EXPECT(hidden == sum);
        check(y, sum);
        hidden = x;
        kernel({hidden.data(), branch.data(), y.data(), 3, size, {nullptr, 0.0F}, DType::float32, 0.5F}, 0, 3);
        EXPECT(y == hidden);
        for (size_t i = 0; i < y.size(); ++i) {
          EXPECT(near(y[i], shared[i], 1e-6));
        }
      });
      for_each_kernel(KERNELS(add_norm_kernel), [&](auto* kernel) {
        Floats hidden = x;
        kernel({hidden.data(), branch.data(), 3, size, of, 0.5F, DType::float32}, 0, 3);
        for (size_t i = 0; i < hidden.size(); ++i) {
          EXPECT(near(hidden[i], x[i] + 0.5 * normed(branch, size, static_cast<int64_t>(i), of), 1e-5));
        }
        hidden = x;
        kernel({hidden.data(), branch.data(), 3, size, {nullptr, 0.0F}, 0.5F, DType::float32}, 0, 3);
        for (size_t i = 0; i < hidden.size(); ++i) {
          EXPECT(near(hidden[i], shared[i], 1e-6));
        }
      });
    }
  }
}

double activated(Activation activation, double x) {
  switch (activation) {
    case Activation::silu:
      return x / (1.0 + std::exp(-x));
    case Activation::gelu:
      return 0.5 * x * std::erfc(-x / std::sqrt(2.0));
    default:
      return 0.5 * x * (1.0 + std::tanh(std::sqrt(2.0 / M_PI) * (x + 0.044715 * x * x * x)));
  }
}

void activations_gate() {
  Floats gate = random_floats(1003, 11);
  gate[0] = 100.0F;
  gate[1] = -100.0F;
  const Floats up = random_floats(1003, 12);
  for (const Activation activation : {Activation::silu, Activation::gelu, Activation::gelu_tanh}) {
    for_each_kernel(KERNELS(activation_kernel), [&](auto* kernel) {
      Floats y = gate;
      const ActivationArgs in_place = {y.data(), up.data(), 1003, y.data(), 1, 1003, DType::float32, activation};
      kernel(in_place, 0, 500);
      kernel(in_place, 500, 1003);
      const auto gated = [&](size_t i) { return activated(activation, gate[i]) * up[i]; };
      for (size_t i = 0; i < y.size(); ++i) {
        EXPECT(near(y[i], gated(i), 1e-5));
      }
      Floats some(3 * 101, 7.0F);  // longer rows
      kernel({gate.data(), up.data(), 300, some.data(), 3, 101, DType::float32, activation}, 0, 250);
      for (size_t i = 0; i < some.size(); ++i) {
        EXPECT(i < 250 ? near(some[i], gated(i / 101 * 300 + i % 101), 1e-5) : some[i] == 7.0F);
      }
      const Floats row_gate = {0.5F, -100.0F, 2.0F};
      kernel({gate.data(), up.data(), 300, some.data(), 3, 101, DType::float32, activation, row_gate.data()}, 0, 303);
      for (size_t i = 0; i < some.size(); ++i) {
        const double factor = 1.0 / (1.0 + std::exp(-row_gate[i / 101]));
        EXPECT(near(some[i], gated(i / 101 * 300 + i % 101) * factor, 1e-5));
      }
      y = gate;  // without gates
      kernel({nullptr, y.data(), 1003, y.data(), 1, 1003, DType::float32, activation}, 0, 1003);
      for (size_t i = 0; i < y.size(); ++i) {
        EXPECT(near(y[i], activated(activation, gate[i]), 1e-5));
      }
    });
  }
}

void embedding_copies_rows() {
  for (const DType dtype : kTypes) {
    const Stored weight(random_floats(10 * 6, 13), dtype);
    const Stored learned(random_floats(5 * 6, 14), dtype);
    const std::vector<int32_t> tokens = {9, -1, 4};
    const std::vector<int32_t> position = {0, 4, -1, -1, 2, 2};
    Floats y(int64_t{6} * 6, 7.0F);
    const MatrixType type = dtype == DType::float32 ? MatrixType::float32 : MatrixType::bfloat16;
    const Matrix table = {weight.bytes.data(), nullptr, 10, 6, type, 0};
    CpuEmbeddingArgs args = {{table, tokens.data(), y.data(), 6, 2, dtype}};
    const auto plain = [&](int64_t i) { return tokens[i / 12] < 0 ? 0.0F : weight.values[tokens[i / 12] * 6 + i % 6]; };
    embedding(args);
    for (int64_t i = 0; i < 36; ++i) {
      EXPECT(y[i] == plain(i));
    }
    args.multiplier = 2.5F;
    args.positions = learned.bytes.data();
    args.places = {6, position.data(), 0, nullptr, 0, 6};
    embedding(args);
    for (int64_t i = 0; i < 36; ++i) {
      const int32_t at = position[i / 6];
      EXPECT(near(y[i], at < 0 ? 0.0 : 2.5 * plain(i) + learned.values[at * 6 + i % 6], 1e-6));
    }
  }
}

void logits_are_scaled_and_capped() {
  const Floats x = random_floats(2 * 103, 15);
  for (const float softcap : {0.0F, 0.7F}) {
    for_each_kernel(KERNELS(logits_kernel), [&](auto* kernel) {
      Floats y = x;
      const LogitArgs args = {y.data(), 2, 103, 3.0F, softcap};
      kernel(args, 0, 99);
      kernel(args, 99, 206);
      for (size_t i = 0; i < y.size(); ++i) {
        EXPECT(near(y[i], softcap > 0 ? softcap * std::tanh(3.0 * x[i] / softcap) : 3.0 * x[i], 1e-5));
      }
    });
  }
}

// The result is that of norming each head, or the whole projection, first.
void rope_norms_heads_where_asked() {
  constexpr int kHeads = 4, kKvHeads = 2, kDim = 16, kRows = 2, kCapacity = kCacheBlock;
  ThreadTeam team(1);
  const Floats q = random_floats(kRows * kHeads * kDim, 23);
  const Floats k = random_floats(kRows * kKvHeads * kDim, 24);
  Floats v = random_floats(kRows * kKvHeads * kDim, 25);
  const Floats norms = random_floats(2 * kHeads * kDim, 26);
  const Floats biases = random_floats(2 * kHeads * kDim, 28);
  const Floats angles = random_floats(2 * kCapacity * kDim / 2, 27);
  const auto run = [&](Floats queries, Floats keys, HeadNorm head_norm) {
    Floats cache(2 * kCapacity * kKvHeads * kDim);
    RopeArgs args = {};
    args.q = queries.data();
    args.k = keys.data();
    args.v = v.data();
    args.q_stride = kHeads * kDim;
    args.kv_stride = kKvHeads * kDim;
    args.k_cache = cache.data();
    args.v_cache = cache.data() + kCapacity * kKvHeads * kDim;
    args.cos = angles.data();
    args.sin = angles.data() + kCapacity * kDim / 2;
    args.head_norm = head_norm;
    args.q_norm = {norms.data(), 1e-6F, NormKind::layer, biases.data()};
    args.k_norm = {norms.data() + kHeads * kDim, 1e-6F, NormKind::layer, biases.data() + kHeads * kDim};
    args.places = prompt_places(kRows, 5, 0);
    args.heads = kHeads;
    args.kv_heads = kKvHeads;
    args.head_dim = kDim;
    args.rotated = kDim;
    args.table = {&kBlocks.back(), 1};  // block 0
    args.dtype = DType::float32;
    rope_and_cache(args, team);
    queries.insert(queries.end(), cache.begin(), cache.end());
    return queries;
  };
  // Row r of `size` values has the r-th of `weights` norms, which take turns; those of keys begin at `first`.
  const auto normed = [&](Floats x, int size, int weights, int first) {
    for (int r = 0; r < static_cast<int>(x.size()) / size; ++r) {
      const int at = first + r % weights * size;
      const NormOf one = {norms.data() + at, 1e-6F, NormKind::layer, biases.data() + at};
      norm({x.data() + r * size, nullptr, x.data() + r * size, 1, size, one, DType::float32}, team);
    }
    return x;
  };
  const auto both = [&](int size, int kv_size, int weights, int kv_weights) {
    return run(normed(q, size, weights, 0), normed(k, kv_size, kv_weights, kHeads * kDim), HeadNorm::none);
  };
  const Floats shared = run(q, k, HeadNorm::shared), own = run(q, k, HeadNorm::own), whole = run(q, k, HeadNorm::whole);
  EXPECT(shared == both(kDim, kDim, 1, 1) && shared != run(q, k, HeadNorm::none));
  EXPECT(own == both(kDim, kDim, kHeads, kKvHeads) && own != shared);
  EXPECT(whole == both(kHeads * kDim, kKvHeads * kDim, 1, 1) && whole != own && whole != shared);
}

void check_rope(int64_t half, bool scaled, double bound = 0.0) {
  const int64_t heads = 4, kv_heads = 2, dim = 10, context = 2 * kCacheBlock;
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
  const Floats scale = random_floats(context, 17);
  const auto clipped = [&](double value) { return bound > 0 ? std::clamp(value, -bound, bound) : value; };
  const auto rotated = [&](const float* x, int64_t i, int64_t at) -> double {
    if (i >= 2 * half) {
      return clipped(x[i]);
    }
    const int64_t j = i % half;
    const double other = i < half ? -clipped(x[i + half]) : clipped(x[i - half]);
    return clipped(x[i]) * static_cast<double>(cos[at * half + j]) + other * sin[at * half + j];
  };
  for (const DType dtype : kTypes) {
    const double tolerance = dtype == DType::float32 ? 1e-6 : 1.0 / 256;
    for_each_kernel(KERNELS(rope_and_cache_kernel), [&](auto* kernel) {
      Floats turned = q;
      Stored keys(Floats(kCached * kv_heads * dim, 7.0F), dtype);
      Stored values = keys;
      Floats unturned = k;
      Floats unclipped = v;
      RopeArgs args = {};
      args.q = turned.data();
      args.k = unturned.data();
      args.v = unclipped.data();
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
      args.rotated = static_cast<int>(2 * half);
      args.q_scale = scaled ? scale.data() : nullptr;
      args.clip = static_cast<float>(bound);
      args.table = kTwoSlots;
      args.dtype = dtype;
      kernel(args, 0, 4);
      int64_t touched[2] = {};
      for (int64_t i = 0; i < kCached * kv_heads * dim; ++i) {
        touched[0] += element(keys, i) != 7.0;
        touched[1] += element(values, i) != 7.0;
      }
      EXPECT(touched[0] == 3 * kv_heads * dim && touched[1] == 3 * kv_heads * dim);
      EXPECT(std::equal(&turned[3 * heads * dim], &turned[3 * heads * dim] + heads * dim, &q[3 * heads * dim]));
      for (int64_t r = 0; r < 3; ++r) {
        for (int64_t i = 0; i < heads * dim; ++i) {
          const int64_t first = r * heads * dim + i / dim * dim;
          const double factor = scaled ? scale[position[r]] : 1.0;
          EXPECT(near(turned[r * heads * dim + i], factor * rotated(&q[first], i % dim, position[r]), 1e-6));
        }
        for (int64_t i = 0; i < kv_heads * dim; ++i) {
          const int64_t first = r * kv_heads * dim + i / dim * dim;
          const int64_t block = kTwoSlots.block_of(slot_of[r], position[r]);
          const int64_t first_of_block = cache_offset(block, i / dim, kv_heads, dim);
          const int64_t key = first_of_block + key_offset(position[r], i % dim);
          const int64_t at = first_of_block + value_offset(position[r], dim) + i % dim;
          EXPECT(near(element(keys, key), rotated(&k[first], i % dim, position[r]), tolerance));
          EXPECT(near(element(values, at), clipped(v[r * kv_heads * dim + i]), tolerance));
        }
      }
    });
  }
}

void rope_rotates_and_fills_the_cache() {
  check_rope(5, false);
  check_rope(3, false);
  check_rope(0, true);
  check_rope(5, true);
  check_rope(3, true, 0.5);
}

struct HeadShape {
  int heads;
  int kv_heads;
  int dim;
};

AttentionArgs attention_args(const Floats& q, const Stored& keys, const Stored& values, Floats& y, const Places& places,
                             const HeadShape& shape, int window, float softcap) {
  const auto scale = static_cast<float>(1.0 / std::sqrt(static_cast<double>(shape.dim)));
  return {q.data(),
          shape.heads * shape.dim,
          keys.bytes.data(),
          values.bytes.data(),
          y.data(),
          places,
          kTwoSlots,
          shape.heads,
          shape.kv_heads,
          shape.dim,
          window,
          scale,
          keys.dtype,
          softcap};
}

void attention_averages_the_values_that_a_row_sees() {
  const int kv_heads = 2;
  for (const auto& [heads, dim] : {std::pair{6, 4}, {2, 64}, {10, 80}, {14, 64}, {8, 30}, {16, 128}}) {
    const std::vector<int32_t> position = {0, 69, 33, 127, -1};
    const std::vector<int32_t> slot_of = {0, 1, 0, 0, 1};
    const int64_t count = 5;
    const Places places = {count, position.data(), 0, slot_of.data(), 0, 0};
    const Floats q = random_floats(count * heads * dim, 17);
    const auto scale = static_cast<float>(1.0 / std::sqrt(static_cast<double>(dim)));
    for (const DType dtype : kTypes) {
      const Stored keys(random_floats(kCached * kv_heads * dim, 18), dtype);
      const Stored values(random_floats(kCached * kv_heads * dim, 19), dtype);
      for (const auto& [window, softcap] : {std::pair{0, 0.0F}, {1, 0.0F}, {20, 0.0F}, {70, 0.0F}, {70, 0.3F}}) {
        for_each_kernel(KERNELS(attention_kernel), [&, window = window, softcap = softcap](auto* kernel) {
          Floats y(count * heads * dim, 7.0F);
          const HeadShape shape = {heads, kv_heads, dim};
          const AttentionArgs args = attention_args(q, keys, values, y, places, shape, window, softcap);
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
              const int64_t block = cache_offset(kTwoSlots.block_of(slot_of[item / heads], p), head, kv_heads, dim);
              const int64_t at = block + value_offset(p, dim);
              double score = 0.0;
              for (int64_t i = 0; i < dim; ++i) {
                score += static_cast<double>(q[item * dim + i]) * keys.values[block + key_offset(p, i)];
              }
              score *= scale;
              const double weight = std::exp(softcap > 0 ? softcap * std::tanh(score / softcap) : score);
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

using PrefillKernel = decltype(portable::prefill_attention_kernel);

void prefill(PrefillKernel* kernel, const AttentionArgs& args) {
  std::vector<uint32_t> scratch(prefill_scratch(args));
  const int64_t items = args.kv_heads * ((args.places.rows + kPrefillRows - 1) / kPrefillRows);
  kernel(args, scratch.data(), 0, items);
}

PrefillKernel* rounding_prefill_kernel() {
#ifdef DLF_X86_64
  return &avx512_bf16::prefill_attention_kernel;
#else
  return nullptr;
#endif
}

void prefill_attention_equals_attention() {
  const int heads = 6, kv_heads = 2;
  ThreadTeam team(2);
  for (const int dim : {4, 20, 64, 80, 96}) {
    for (const int begin : {0, 37, 150}) {
      for (const int count : {1, 31, 100}) {
        const Places places = prompt_places(count, begin, 1);
        const Floats q = random_floats(count * heads * dim, 20);
        for (const DType dtype : kTypes) {
          const Stored keys(random_floats(kCached * kv_heads * dim, 21), dtype);
          const Stored values(random_floats(kCached * kv_heads * dim, 22), dtype);
          for (const auto& [window, softcap] : {std::pair{0, 0.0F}, {1, 0.0F}, {20, 0.0F}, {90, 0.0F}, {90, 0.3F}}) {
            Floats expected(count * heads * dim);
            const auto make_args = [&, window = window, softcap = softcap](Floats& y) {
              return attention_args(q, keys, values, y, places, {heads, kv_heads, dim}, window, softcap);
            };
            attention(make_args(expected), team);
            // With the products of avx512_bf16, queries and weights are rounded as the cache is.
            const auto compare = [&](const Floats& y, bool rounded) {
              const double tolerance = rounded && dtype == DType::bfloat16 ? 0.02 : 1e-5;
              for (size_t i = 0; i < y.size(); ++i) {
                EXPECT(near(y[i], expected[i], tolerance));
              }
            };
            for_each_kernel(KERNELS_BF16(prefill_attention_kernel), [&](auto* kernel) {
              Floats y(expected.size());
              prefill(kernel, make_args(y));
              compare(y, kernel == rounding_prefill_kernel());
            });
            Floats threaded(expected.size());
            prefill_attention(make_args(threaded), team);
            compare(threaded, cpu_capability() == CpuCapability::avx512_bf16);
          }
        }
      }
    }
  }
}

// Each row is bit-identical however the rows are divided into passes, even if later positions hold NaNs.
void prefill_attention_does_not_depend_on_the_pass() {
  const int count = 100, begin = 67, broken = 60;
  for (const auto& [heads, kv_heads, dim] : {HeadShape{6, 2, 64}, {2, 2, 20}, {8, 1, 80}}) {
    const int64_t width = static_cast<int64_t>(heads) * dim;
    const Floats q = random_floats(count * width, 23);
    Floats random_keys = random_floats(kCached * kv_heads * dim, 24);
    Floats random_values = random_floats(kCached * kv_heads * dim, 25);
    for (int p = begin + broken; p < begin + count; ++p) {
      for (int64_t i = 0; i < static_cast<int64_t>(kv_heads) * dim; ++i) {
        const int64_t block = cache_offset(kTwoSlots.block_of(1, p), i / dim, kv_heads, dim);
        random_keys[block + key_offset(p, i % dim)] = NAN;
        random_values[block + value_offset(p, dim) + i % dim] = NAN;
      }
    }
    for (const DType dtype : kTypes) {
      const Stored keys(random_keys, dtype);
      const Stored values(random_values, dtype);
      for (const auto& [window, softcap] : {std::pair{0, 0.0F}, {40, 0.0F}, {70, 0.3F}}) {
        for_each_kernel(KERNELS_BF16(prefill_attention_kernel), [&, window = window, softcap = softcap](auto* kernel) {
          Floats y(count * width);
          const auto read = [&](int first, int rows) {
            AttentionArgs args = attention_args(q, keys, values, y, prompt_places(rows, begin + first, 1),
                                                {heads, kv_heads, dim}, window, softcap);
            args.q = q.data() + first * width;
            args.y = y.data() + first * width;
            prefill(kernel, args);
          };
          read(0, count);
          const Floats whole(y.begin(), y.begin() + broken * width);
          EXPECT(std::none_of(whole.begin(), whole.end(), [](float value) { return std::isnan(value); }));
          EXPECT(std::isnan(y[broken * width]));
          for (const int rows : {1, 3, 16, 33}) {
            std::fill(y.begin(), y.end(), 7.0F);
            for (int first = 0; first < count; first += rows) {
              read(first, std::min(rows, count - first));
            }
            EXPECT(std::memcmp(whole.data(), y.data(), whole.size() * sizeof(float)) == 0);
          }
        });
      }
    }
  }
}

}  // namespace
}  // namespace dlf::ops

int main() {
  using namespace dlf::ops;
  return dlf::testing::run({
      {"norms are those of their definitions", norms_are_those_of_their_definitions},
      {"activations gate", activations_gate},
      {"logits are scaled and capped", logits_are_scaled_and_capped},
      {"embedding copies rows", embedding_copies_rows},
      {"rope rotates and fills the cache", rope_rotates_and_fills_the_cache},
      {"rope norms heads where asked", rope_norms_heads_where_asked},
      {"attention averages the values that a row sees", attention_averages_the_values_that_a_row_sees},
      {"prefill attention equals attention", prefill_attention_equals_attention},
      {"prefill attention does not depend on the pass", prefill_attention_does_not_depend_on_the_pass},
  });
}
