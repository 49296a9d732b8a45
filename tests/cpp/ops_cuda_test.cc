// Compares every operation on the device with its definition in double precision.
#include <ATen/core/Tensor.h>
#include <ATen/ops/cat.h>
#include <ATen/ops/equal.h>
#include <ATen/ops/full.h>
#include <ATen/ops/gelu.h>
#include <ATen/ops/matmul.h>
#include <ATen/ops/stack.h>
#include <ATen/ops/tensor.h>
#include <ATen/ops/zeros.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <utility>
#include <vector>

#include "cuda_testing.h"
#include "ops/cuda/activation.h"
#include "ops/cuda/attention.h"
#include "ops/cuda/cache_blocks.h"
#include "ops/cuda/embedding.h"
#include "ops/cuda/logits.h"
#include "ops/cuda/norm.h"
#include "ops/cuda/rope.h"

namespace dlf::cuda {
namespace {

using namespace dlf::testing;
using ops::Activation;
using ops::AttentionArgs;
using ops::NormKind;
using ops::RopeArgs;

void embedding_copies_rows() {
  const int size = 300;
  const at::Tensor token = to_device({9, -1, 4});
  for (const DType dtype : kDeviceTypes) {
    const at::Tensor weight = random({10, size}, scalar_type(dtype), 1);
    const at::Tensor on_device = to_device(weight);
    const ops::Matrix table = {on_device.const_data_ptr(), nullptr, 10, size, ops::MatrixType::bfloat16, 0};
    const at::Tensor y = run_in_any_order([&](Stream stream) {
      const at::Tensor hidden = filled({6, size}, at::kFloat, 7.0);
      embedding({table, token.const_data_ptr<int32_t>(), hidden.mutable_data_ptr<float>(), 6, 2, dtype}, stream);
      return hidden;
    });
    const at::Tensor expected = weight.to(at::kFloat);
    for (int row = 0; row < 6; ++row) {
      EXPECT(at::equal(y[row], row / 2 == 0 ? expected[9] : row / 2 == 1 ? at::zeros({size}) : expected[4]));
    }
    const at::Tensor learned = random({5, size}, scalar_type(dtype), 2);
    const at::Tensor device_learned = to_device(learned);
    const at::Tensor position = to_device({0, 4, -1, -1, 2, 2});
    const at::Tensor placed = run_in_any_order([&](Stream stream) {
      const at::Tensor hidden = filled({6, size}, at::kFloat, 7.0);
      embedding({table, token.const_data_ptr<int32_t>(), hidden.mutable_data_ptr<float>(), 6, 2, dtype, 2.5F,
                 device_learned.const_data_ptr(), ops::Places{6, position.const_data_ptr<int32_t>(), 0, nullptr, 0, 6}},
                stream);
      return hidden;
    });
    const at::Tensor first = 2.5 * expected[9];
    const at::Tensor last = 2.5 * expected[4] + learned[2].to(at::kFloat);
    const at::Tensor none = at::zeros({size});
    const at::Tensor sums =
        at::stack({first + learned[0].to(at::kFloat), first + learned[4].to(at::kFloat), none, none, last, last});
    EXPECT(near(placed, sums, 1e-6));
  }
}

void norms_are_those_of_their_definitions() {
  const double epsilon = 1e-5;
  for (const int size : {1, 5, 64, 200, 2050, 5120}) {
    for (const DType dtype : kDeviceTypes) {
      for (const NormKind kind : {NormKind::rms, NormKind::layer}) {
        const bool centred = kind == NormKind::layer;
        const at::ScalarType type = scalar_type(dtype);
        const at::Tensor x = random({3, size}, at::kFloat, 2) + 2.0;
        const at::Tensor branch = random({3, size}, type, 3);
        const at::Tensor weight = random({size}, at::kFloat, 4);
        const at::Tensor bias = random({size}, at::kFloat, 5);
        const at::Tensor device_branch = to_device(branch);
        const at::Tensor device_weight = to_device(weight);
        const at::Tensor device_bias = to_device(bias);
        const ops::NormOf of = {device_weight.const_data_ptr<float>(), static_cast<float>(epsilon), kind,
                                centred ? device_bias.const_data_ptr<float>() : nullptr};
        const auto exact = [&](const at::Tensor& from) {
          const at::Tensor values = from.to(at::kDouble);
          const at::Tensor rest = centred ? values - values.mean(1, true) : values;
          const at::Tensor normed = rest / (rest.square().mean(1, true) + epsilon).sqrt() * weight.to(at::kDouble);
          return centred ? normed + bias.to(at::kDouble) : normed;
        };
        const at::Tensor added = branch.to(at::kFloat);
        for (const bool add : {false, true}) {
          at::Tensor hidden;
          const auto run = [&](const ops::NormOf& norm_of, float branch_scale) {
            return run_in_any_order([&](Stream stream) {
              hidden = to_device(x.clone());
              const at::Tensor normed = filled({3, size}, type, 7.0);
              norm({hidden.mutable_data_ptr<float>(), add ? device_branch.const_data_ptr() : nullptr,
                    normed.mutable_data_ptr(), 3, size, norm_of, dtype, branch_scale},
                   stream);
              return normed;
            });
          };
          const at::Tensor y = run(of, 1.0F);
          const at::Tensor sum = add ? x + added : x;
          EXPECT(at::equal(hidden.to(at::kCPU), sum));
          EXPECT(near(y, exact(sum), tolerance(dtype)));
          EXPECT(near(run({nullptr, 0.0F}, 0.5F), add ? x + 0.5 * added : x, tolerance(dtype)));
        }
        for (const bool normed : {false, true}) {
          const at::Tensor hidden = run_in_any_order([&](Stream stream) {
            const at::Tensor sum = to_device(x.clone());
            const ops::NormOf norm_of = normed ? of : ops::NormOf{nullptr, 0.0F};
            add_norm({sum.mutable_data_ptr<float>(), device_branch.const_data_ptr(), 3, size, norm_of, 0.5F, dtype},
                     stream);
            return sum;
          });
          EXPECT(near(hidden, x + 0.5 * (normed ? exact(added) : added.to(at::kDouble)), 1e-5));
        }
      }
    }
  }
}

void activations_gate() {
  const auto activated = [](Activation activation, const at::Tensor& x) {
    return activation == Activation::silu ? x * x.sigmoid()
                                          : at::gelu(x, activation == Activation::gelu ? "none" : "tanh");
  };
  for (const Activation activation : {Activation::silu, Activation::gelu, Activation::gelu_tanh}) {
    for (const int size : {1, 6, 100, 1000}) {
      for (const int padding : {0, 3, 8}) {
        for (const DType dtype : kDeviceTypes) {
          at::Tensor x = random({3, 2 * (size + padding)}, scalar_type(dtype), 5);
          x[0][0] = 100.0;
          x[1][0] = -100.0;
          const at::Tensor device_x = to_device(x);
          const at::Tensor row_gate = at::tensor({0.5F, -100.0F, 2.0F});
          const at::Tensor device_gate = to_device(row_gate);
          const auto run = [&](bool gated, bool by_row = false) {
            return run_in_any_order([&](Stream stream) {
              const at::Tensor y = filled({3, size}, scalar_type(dtype), 7.0);
              const at::Tensor up = device_x.narrow(1, size + padding, size);
              activate(
                  {gated ? device_x.const_data_ptr() : nullptr, gated ? up.const_data_ptr() : device_x.const_data_ptr(),
                   2 * (size + padding), y.mutable_data_ptr(), 3, size, dtype, activation,
                   by_row ? device_gate.const_data_ptr<float>() : nullptr},
                  stream);
              return y;
            });
          };
          const at::Tensor gate = activated(activation, x.narrow(1, 0, size).to(at::kDouble));
          const at::Tensor up = x.narrow(1, size + padding, size).to(at::kDouble);
          EXPECT(near(run(true), gate * up, tolerance(dtype)));
          EXPECT(near(run(false), gate, tolerance(dtype)));
          const at::Tensor factor = row_gate.to(at::kDouble).sigmoid().unsqueeze(1);
          EXPECT(near(run(true, true), gate * up * factor, tolerance(dtype)));
        }
      }
    }
  }
}

void logits_are_scaled_and_capped() {
  const at::Tensor x = random({2, 300}, at::kFloat, 5);
  for (const float softcap : {0.0F, 0.7F}) {
    const at::Tensor y = run_in_any_order([&](Stream stream) {
      const at::Tensor logits = to_device(x.clone());
      finish_logits({logits.mutable_data_ptr<float>(), 2, 300, 3.0F, softcap}, stream);
      return logits;
    });
    const at::Tensor scaled = x.to(at::kDouble) * 3.0;
    EXPECT(near(y, softcap > 0 ? softcap * (scaled / softcap).tanh() : scaled, 1e-5));
  }
}

// ---- rope

at::Tensor normed(const at::Tensor& x, const at::Tensor& weight, const at::Tensor& bias, double epsilon) {
  const at::Tensor centred = bias.defined() ? x - x.mean(-1, true) : x;
  const at::Tensor scaled = centred / (centred.square().mean(-1, true) + epsilon).sqrt() * weight;
  return bias.defined() ? scaled + bias : scaled;
}

at::Tensor rotated(const at::Tensor& x, const at::Tensor& cos, const at::Tensor& sin) {
  const int64_t half = cos.size(-1);
  const at::Tensor a = x.narrow(-1, 0, half);
  const at::Tensor b = x.narrow(-1, half, half);
  return at::cat({a * cos - b * sin, b * cos + a * sin, x.narrow(-1, 2 * half, x.size(-1) - 2 * half)}, -1);
}

enum class Standing { rows, slots, prompt };  // row r in slot r % slots; each row in its own slot; all rows in one slot

struct RopeCase {
  int heads;
  int kv_heads;
  int dim;
  ops::HeadNorm norm;
  Standing standing;
  int rotated;
  bool scaled = false;
  ops::NormKind kind = ops::NormKind::rms;  // LayerNorm has a bias
  double clip = 0;
};

void check_rope(const RopeCase& test, DType dtype) {
  constexpr int kRows = 3, kCapacity = 80, kSlots = 3, kPadding = 4, kStart = 62, kSlot = 1;
  constexpr double kEpsilon = 1e-6;
  const std::vector<int32_t> positions = {70, -1, 2};
  const std::vector<int32_t> own_slots = {2, 1, 0};
  const bool is_prompt = test.standing == Standing::prompt;
  const int q_size = test.heads * test.dim;
  const int kv_size = test.kv_heads * test.dim;
  const int k_offset = q_size + kPadding;
  const int v_offset = k_offset + kv_size + kPadding;
  const int stride = v_offset + kv_size;
  const Blocks blocks(kSlots, kCapacity);
  const int64_t cache_size = kSlots * ops::blocks_for(kCapacity) * ops::kCacheBlock * kv_size;
  const at::ScalarType type = scalar_type(dtype);
  const at::Tensor x = random({kRows, stride}, type, 6);
  const at::Tensor angle = random({kCapacity, test.rotated / 2}, at::kFloat, 7);
  const bool whole = test.norm == ops::HeadNorm::whole;
  const bool shared = test.norm == ops::HeadNorm::shared;
  const bool centred = test.kind == ops::NormKind::layer;
  const auto norms = [&](int size, int seed) { return random({shared ? test.dim : size}, at::kFloat, seed); };
  const at::Tensor q_norm = norms(q_size, 8);
  const at::Tensor k_norm = norms(kv_size, 9);
  const at::Tensor q_bias = centred ? norms(q_size, 11) : at::Tensor();
  const at::Tensor k_bias = centred ? norms(kv_size, 12) : at::Tensor();
  const at::Tensor scale = random({kCapacity}, at::kFloat, 10);
  const at::Tensor device_scale = to_device(scale);
  const at::Tensor cos = to_device(angle.cos());
  const at::Tensor sin = to_device(angle.sin());
  const auto on_device = [&](const at::Tensor& one) { return one.defined() ? to_device(one) : one; };
  const at::Tensor device_norms[] = {on_device(q_norm), on_device(k_norm), on_device(q_bias), on_device(k_bias)};
  const auto norm_of = [&](int i) {
    const at::Tensor& bias = device_norms[i + 2];
    return ops::NormOf{device_norms[i].const_data_ptr<float>(), static_cast<float>(kEpsilon), test.kind,
                       bias.defined() ? bias.const_data_ptr<float>() : nullptr};
  };
  const at::Tensor position = to_device(positions);
  const at::Tensor device_slots = to_device(own_slots);
  const at::Tensor all = run_in_any_order([&](Stream stream) {
    const at::Tensor both = to_device(at::cat({x.flatten(), at::full({2 * cache_size}, 7.0, x.options())}));
    const at::Tensor qkv = both.narrow(0, 0, x.numel());
    const at::Tensor keys = both.narrow(0, x.numel(), cache_size);
    const at::Tensor values = both.narrow(0, x.numel() + cache_size, cache_size);
    RopeArgs args = {};
    args.q = qkv.mutable_data_ptr();
    args.k = qkv.narrow(0, k_offset, kv_size).mutable_data_ptr();
    args.v = qkv.narrow(0, v_offset, kv_size).mutable_data_ptr();
    args.q_stride = stride;
    args.kv_stride = stride;
    args.k_cache = keys.mutable_data_ptr();
    args.v_cache = values.mutable_data_ptr();
    args.cos = cos.const_data_ptr<float>();
    args.sin = sin.const_data_ptr<float>();
    args.q_scale = test.scaled ? device_scale.const_data_ptr<float>() : nullptr;
    args.head_norm = test.norm;
    args.q_norm = norm_of(0);
    args.k_norm = norm_of(1);
    args.clip = static_cast<float>(test.clip);
    if (is_prompt) {
      args.places = ops::prompt_places(kRows, kStart, kSlot);
    } else {
      const bool own = test.standing == Standing::slots;
      args.places = {kRows, position.const_data_ptr<int32_t>(),
                     0,     own ? device_slots.const_data_ptr<int32_t>() : nullptr,
                     0,     kRows};
    }
    args.heads = test.heads;
    args.kv_heads = test.kv_heads;
    args.head_dim = test.dim;
    args.rotated = test.rotated;
    args.table = blocks.table();
    args.dtype = dtype;
    rope_and_cache(args, stream);
    return both;
  });
  const at::Tensor qkv = all.narrow(0, 0, x.numel()).view(x.sizes());
  const at::Tensor halves =
      all.narrow(0, x.numel(), 2 * cache_size).view({2, -1, test.kv_heads, ops::kCacheBlock, test.dim});
  const at::Tensor caches = at::stack({blocks.join(halves[0], kCapacity), blocks.join(halves[1], kCapacity)});
  at::Tensor expected = x.to(at::kDouble);
  at::Tensor expected_caches = at::full(caches.sizes(), 7.0, at::kDouble);
  for (int r = 0; r < kRows; ++r) {
    const int p = is_prompt ? kStart + r : positions[r];
    const int slot = is_prompt ? kSlot : test.standing == Standing::slots ? own_slots[r] : r;
    at::Tensor all_q = expected[r].narrow(0, 0, q_size);
    at::Tensor all_k = expected[r].narrow(0, k_offset, kv_size);
    if (whole) {  // idle rows too
      all_q.copy_(normed(all_q, q_norm, q_bias, kEpsilon));
      all_k.copy_(normed(all_k, k_norm, k_bias, kEpsilon));
    }
    if (p < 0) {
      continue;
    }
    const at::Tensor c = angle[p].cos().to(at::kDouble);
    const at::Tensor s = angle[p].sin().to(at::kDouble);
    at::Tensor q = all_q.view({test.heads, test.dim});
    at::Tensor k = all_k.view({test.kv_heads, test.dim}).clone();
    const at::Tensor v = expected[r].narrow(0, v_offset, kv_size).view({test.kv_heads, test.dim});
    if (!whole && test.norm != ops::HeadNorm::none) {
      const auto by_head = [&](const at::Tensor& one) { return one.defined() ? one.view({-1, test.dim}) : one; };
      q.copy_(normed(q, by_head(q_norm), by_head(q_bias), kEpsilon));
      k = normed(k, by_head(k_norm), by_head(k_bias), kEpsilon);
    }
    const auto clipped = [&](const at::Tensor& one) { return test.clip > 0 ? one.clamp(-test.clip, test.clip) : one; };
    q.copy_(rotated(clipped(q), c, s) * (test.scaled ? scale[p].item<float>() : 1.0F));
    expected_caches[0][slot].select(1, p).copy_(rotated(clipped(k), c, s));
    expected_caches[1][slot].select(1, p).copy_(clipped(v));
  }
  const double bound = (whole ? 2 : 1) * tolerance(dtype);  // a norm of whole projections is rounded once more
  EXPECT(near(qkv, expected, bound));
  EXPECT(near(caches, expected_caches, bound));
}

void rope_rotates_and_fills_the_cache() {
  for (const DType dtype : kDeviceTypes) {
    for (const ops::HeadNorm norm :
         {ops::HeadNorm::none, ops::HeadNorm::shared, ops::HeadNorm::own, ops::HeadNorm::whole}) {
      for (const Standing standing : {Standing::rows, Standing::slots, Standing::prompt}) {
        check_rope({4, 2, 10, norm, standing, 10}, dtype);
        check_rope({5, 5, 128, norm, standing, 128}, dtype);
        check_rope({1, 1, 2, norm, standing, 2}, dtype);
        check_rope({3, 1, 20, norm, standing, 6, true}, dtype);
        check_rope({2, 2, 16, norm, standing, 0}, dtype);
        check_rope({4, 2, 10, norm, standing, 6, true, ops::NormKind::layer, 0.75}, dtype);
      }
    }
  }
}

// ---- blocks of the cache

void blocks_are_set_copied_and_gathered() {
  constexpr int kLayers = 2, kHeads = 2, kSlots = 2, kPositions = 150;
  for (const int dim : {6, 64}) {  // without and with vectors
    for (const DType dtype : kDeviceTypes) {
      const Blocks blocks(kSlots, kPositions);
      const at::Tensor whole = random({kSlots, kHeads, kPositions, dim}, scalar_type(dtype), 13);
      const at::Tensor cache = to_device(blocks.cut(whole));
      const at::Tensor y = run_in_any_order([&](Stream stream) {
        const at::Tensor to = filled({kHeads, kPositions + 3, dim}, scalar_type(dtype), 7.0);
        gather_cache({cache.const_data_ptr(), to.mutable_data_ptr(), blocks.table(), kHeads,
                      static_cast<int>(dim * cache.element_size()), 1, kPositions, kPositions + 3},
                     stream);
        return to;
      });
      EXPECT(at::equal(y.narrow(1, 0, kPositions), whole[1]));
      EXPECT(y.narrow(1, kPositions, 3).eq(7.0).all().item<bool>());
    }
  }
  const at::Tensor side = random({2, kLayers, 5, 40}, at::kFloat, 14);
  const at::Tensor copied = run_in_any_order([&](Stream stream) {
    const at::Tensor there = to_device(side);
    BlockCopies copies = {};
    copies.keys = there[0].mutable_data_ptr();
    copies.values = there[1].mutable_data_ptr();
    copies.layers = kLayers;
    copies.blocks = 5;
    copies.block_bytes = int64_t{40} * 4;
    copies.count = 3;
    const int32_t from[] = {4, 1, 0}, to[] = {1, 2, 3};  // the second copies what the first wrote
    std::copy_n(from, 3, copies.from);
    std::copy_n(to, 3, copies.to);
    copy_blocks(copies, stream);
    return there;
  });
  EXPECT(at::equal(copied, side.index_select(2, at::tensor({0, 4, 4, 0, 4}))));
  const at::Tensor table = run_in_any_order([&](Stream stream) {
    const at::Tensor there = to_device(std::vector<int32_t>{9, 9, 9, 9});
    TableChanges changes = {};
    changes.table = there.mutable_data_ptr<int32_t>();
    changes.count = 3;
    const int64_t entry[] = {2, 0, 2};
    const int32_t block[] = {5, 6, 7};
    std::copy_n(entry, 3, changes.entry);
    std::copy_n(block, 3, changes.block);
    set_blocks(changes, stream);
    return there;
  });
  EXPECT(at::equal(table, at::tensor({6, 9, 7, 9}, at::kInt)));
}

// ---- attention

struct AttentionCase {
  int heads;
  int kv_heads;
  int dim;
  int capacity;
  int window;
  std::vector<int32_t> positions;
  float softcap = 0.0F;
};

class AttentionData {
 public:
  AttentionData(const AttentionCase& test, DType dtype)
      : test_(test),
        dtype_(dtype),
        rows_(static_cast<int>(test.positions.size())),
        stride_(test.heads * test.dim + 8),
        qkv_(random({rows_, stride_}, scalar_type(dtype), 10)),
        keys_(random({rows_, test.kv_heads, test.capacity, test.dim}, scalar_type(dtype), 11)),
        values_(random(keys_.sizes(), scalar_type(dtype), 12)),
        blocks_(rows_, test.capacity) {
    // Keys and values beyond a row's position must not be read.
    for (int r = 0; r < rows_; ++r) {
      const int64_t seen = test.positions[r] + 1;
      keys_[r].narrow(1, seen, test.capacity - seen).fill_(NAN);
      values_[r].narrow(1, seen, test.capacity - seen).fill_(NAN);
    }
    device_qkv_ = to_device(qkv_);
    device_keys_ = to_device(blocks_.cut(keys_));
    device_values_ = to_device(blocks_.cut(values_));
    position_ = to_device(test.positions);
  }

  at::Tensor run(int splits, int first, int rows, Stream stream) const {
    const at::Tensor y = filled({rows, test_.heads, test_.dim}, scalar_type(dtype_), 7.0);
    AttentionArgs args = {};
    const at::Tensor qkv = device_qkv_.narrow(0, first, rows);
    args.q = qkv.const_data_ptr();
    args.q_stride = stride_;
    args.k_cache = device_keys_.const_data_ptr();
    args.v_cache = device_values_.const_data_ptr();
    args.y = y.mutable_data_ptr();
    args.places = {rows, position_.const_data_ptr<int32_t>() + first, 0, nullptr, first, rows};
    args.heads = test_.heads;
    args.kv_heads = test_.kv_heads;
    args.head_dim = test_.dim;
    args.table = blocks_.table();
    args.window = test_.window;
    args.scale = scale();
    args.softcap = test_.softcap;
    args.dtype = dtype_;
    attention(args, splits, stream);
    return y;
  }

  at::Tensor expected() const {
    at::Tensor y = at::zeros({rows_, test_.heads, test_.dim}, at::kDouble);
    for (int r = 0; r < rows_; ++r) {
      const int64_t end = test_.positions[r] + 1;
      const int64_t begin = test_.window > 0 ? std::max<int64_t>(0, end - test_.window) : 0;
      if (end == 0) {
        continue;
      }
      const int share = test_.heads / test_.kv_heads;
      const at::Tensor q = qkv_[r].narrow(0, 0, test_.heads * test_.dim).to(at::kDouble);
      const auto seen = [&](const at::Tensor& cache) {
        return cache[r].narrow(1, begin, end - begin).to(at::kDouble).repeat_interleave(share, 0);
      };
      at::Tensor scores = at::matmul(seen(keys_), q.view({test_.heads, test_.dim, 1})).squeeze(2) * scale();
      if (test_.softcap > 0) {
        scores = (scores / test_.softcap).tanh() * test_.softcap;
      }
      y[r].copy_(at::matmul(scores.softmax(1).unsqueeze(1), seen(values_)).squeeze(1));
    }
    return y;
  }

 private:
  float scale() const { return 1.0F / std::sqrt(static_cast<float>(test_.dim)); }

  AttentionCase test_;
  DType dtype_;
  int rows_;
  int stride_;
  at::Tensor qkv_, keys_, values_;
  Blocks blocks_;
  at::Tensor device_qkv_, device_keys_, device_values_, position_;
};

void check_attention(const AttentionCase& test, DType dtype) {
  const AttentionData data(test, dtype);
  const int rows = static_cast<int>(test.positions.size());
  const at::Tensor y = run_in_any_order([&](Stream stream) { return data.run(1, 0, rows, stream); });
  EXPECT(near(y, data.expected(), tolerance(dtype)));
  if (devices().at(0).compute_capability >= 90) {
    const at::Tensor split = run_in_any_order([&](Stream stream) { return data.run(8, 0, rows, stream); });
    EXPECT(at::equal(split, y));
  }
  const at::Tensor alone = run_on_device([&](Stream stream) { return data.run(1, rows - 1, 1, stream); });
  EXPECT(at::equal(alone[0], y[rows - 1]));
}

void attention_averages_the_values_that_a_row_sees() {
  for (const DType dtype : kDeviceTypes) {
    for (const int window : {0, 1, 20, 70}) {
      check_attention({2, 2, 128, 160, window, {0, 69, -1, 159}}, dtype);
      check_attention({8, 1, 64, 100, window, {33, -1, 99}}, dtype);
    }
    check_attention({10, 2, 80, 50, 0, {-1, 49}}, dtype);  // 5 query heads a key head, and lanes without elements
    check_attention({6, 3, 16, 50, 0, {3, 49}}, dtype);
    check_attention({7, 1, 128, 40, 0, {39}}, dtype);
    check_attention({4, 2, 30, 50, 0, {-1, 20, 49}}, dtype);  // no vector loads
    check_attention({2, 1, 256, 50, 7, {49}}, dtype);
    check_attention({6, 6, 256, 50, 0, {49, 3}}, dtype);
    check_attention({3, 1, 200, 50, 9, {49, -1, 20}}, dtype);
    check_attention({4, 2, 256, 70, 0, {69, 30}, 0.4F}, dtype);
    check_attention({2, 2, 64, 70, 12, {69}, 0.4F}, dtype);
    check_attention({4, 1, 30, 50, 0, {49}, 0.4F}, dtype);
    check_attention({1, 1, 2, 9, 0, {8}}, dtype);
  }
}

// Contexts long enough for streams of several tiles.
void attention_over_a_long_context() {
  check_attention({1, 1, 64, 1700, 0, {1699, 1300}}, DType::bfloat16);
  check_attention({3, 1, 128, 1100, 1000, {1099}}, DType::float16);
  check_attention({1, 1, 64, 300, 0, {299}}, DType::float32);
}

void attention_refuses_what_it_cannot_do() {
  EXPECT_THROWS(AttentionData({1, 1, 64, 128, 0, {127}}, DType::float32).run(3, 0, 1, nullptr));
  EXPECT_THROWS(AttentionData({1, 1, 258, 8, 0, {7}}, DType::float32).run(1, 0, 1, nullptr));
  EXPECT_THROWS(AttentionData({3, 2, 64, 8, 0, {7}}, DType::float32).run(1, 0, 1, nullptr));
}

void attention_is_split_where_that_fills_the_device() {
  EXPECT(attention_splits(1, 40, 4096, 132, 90) == 8);
  EXPECT(attention_splits(64, 40, 4096, 132, 90) == 1);
  EXPECT(attention_splits(1, 40, 64, 132, 90) == 1);
  EXPECT(attention_splits(1, 40, 4096, 108, 80) == 1);
}

}  // namespace
}  // namespace dlf::cuda

int main() {
  using namespace dlf::cuda;
  return dlf::testing::run_cuda({
      {"embedding copies rows", embedding_copies_rows},
      {"norms are those of their definitions", norms_are_those_of_their_definitions},
      {"activations gate", activations_gate},
      {"logits are scaled and capped", logits_are_scaled_and_capped},
      {"rope rotates and fills the cache", rope_rotates_and_fills_the_cache},
      {"blocks are set, copied and gathered", blocks_are_set_copied_and_gathered},
      {"attention averages the values that a row sees", attention_averages_the_values_that_a_row_sees},
      {"attention over a long context", attention_over_a_long_context},
      {"attention refuses what it cannot do", attention_refuses_what_it_cannot_do},
      {"attention is split where that fills the device", attention_is_split_where_that_fills_the_device},
  });
}
