// Compares every operation on the device with its definition in double precision.
#include <ATen/ATen.h>

#include <cmath>
#include <cstdint>
#include <utility>
#include <vector>

#include "cuda_testing.h"
#include "ops/cuda/activation.h"
#include "ops/cuda/attention.h"
#include "ops/cuda/embedding.h"
#include "ops/cuda/norm.h"
#include "ops/cuda/rope.h"

namespace dlf::cuda {
namespace {

using namespace dlf::testing;
using ops::AttentionArgs;
using ops::RopeArgs;

void embedding_copies_rows() {
  const int size = 300;
  const at::Tensor token = to_device({9, -1, 4});
  for (const DType dtype : kDeviceTypes) {
    const at::Tensor weight = random({10, size}, scalar_type(dtype), 1);
    const at::Tensor on_device = to_device(weight);
    const at::Tensor y = run_in_any_order([&](Stream stream) {
      const at::Tensor hidden = filled({6, size}, at::kFloat, 7.0);
      embedding({on_device.const_data_ptr(), token.const_data_ptr<int32_t>(), hidden.mutable_data_ptr<float>(), 6, 2,
                 size, dtype},
                stream);
      return hidden;
    });
    const at::Tensor expected = weight.to(at::kFloat);
    for (int row = 0; row < 6; ++row) {
      EXPECT(at::equal(y[row], row / 2 == 0 ? expected[9] : row / 2 == 1 ? at::zeros({size}) : expected[4]));
    }
  }
}

void rms_norm_divides_by_the_root_mean_square() {
  const double epsilon = 1e-5;
  for (const int size : {1, 5, 64, 200, 2050, 5120}) {
    for (const DType dtype : kDeviceTypes) {
      for (const bool add : {false, true}) {
        const at::Tensor x = random({3, size}, at::kFloat, 2);
        const at::Tensor branch = random({3, size}, scalar_type(dtype), 3);
        const at::Tensor weight = random({size}, at::kFloat, 4);
        const at::Tensor device_branch = to_device(branch);
        const at::Tensor device_weight = to_device(weight);
        at::Tensor hidden;
        const at::Tensor y = run_in_any_order([&](Stream stream) {
          hidden = to_device(x.clone());
          const at::Tensor normed = filled({3, size}, scalar_type(dtype), 7.0);
          rms_norm({hidden.mutable_data_ptr<float>(), add ? device_branch.const_data_ptr() : nullptr,
                    device_weight.const_data_ptr<float>(), normed.mutable_data_ptr(), 3, size,
                    static_cast<float>(epsilon), dtype},
                   stream);
          return normed;
        });
        const at::Tensor sum = add ? x + branch.to(at::kFloat) : x;
        EXPECT(at::equal(hidden.to(at::kCPU), sum));
        const at::Tensor exact = sum.to(at::kDouble);
        const at::Tensor expected = exact / (exact.square().mean(1, true) + epsilon).sqrt() * weight.to(at::kDouble);
        EXPECT(near(y, expected, tolerance(dtype)));
      }
    }
  }
}

void swiglu_gates() {
  for (const int size : {1, 6, 100, 1000}) {
    for (const int padding : {0, 3, 8}) {
      for (const DType dtype : kDeviceTypes) {
        at::Tensor x = random({3, 2 * (size + padding)}, scalar_type(dtype), 5);
        x[0][0] = 100.0;
        x[1][0] = -100.0;
        const at::Tensor device_x = to_device(x);
        const at::Tensor y = run_in_any_order([&](Stream stream) {
          const at::Tensor activated = filled({3, size}, scalar_type(dtype), 7.0);
          const at::Tensor up = device_x.narrow(1, size + padding, size);
          swiglu({device_x.const_data_ptr(), up.const_data_ptr(), 2 * (size + padding), activated.mutable_data_ptr(), 3,
                  size, dtype},
                 stream);
          return activated;
        });
        const at::Tensor gate = x.narrow(1, 0, size).to(at::kDouble);
        const at::Tensor up = x.narrow(1, size + padding, size).to(at::kDouble);
        EXPECT(near(y, gate * gate.sigmoid() * up, tolerance(dtype)));
      }
    }
  }
}

// ---- rope

at::Tensor normed(const at::Tensor& x, const at::Tensor& weight, double epsilon) {
  return x / (x.square().mean(-1, true) + epsilon).sqrt() * weight;
}

at::Tensor rotated(const at::Tensor& x, const at::Tensor& cos, const at::Tensor& sin) {
  const int64_t half = x.size(-1) / 2;
  const at::Tensor a = x.narrow(-1, 0, half);
  const at::Tensor b = x.narrow(-1, half, half);
  return at::cat({a * cos - b * sin, b * cos + a * sin}, -1);
}

enum class Standing { rows, slots, prompt };  // row r in slot r % slots; each row in its own slot; all rows in one slot

struct RopeCase {
  int heads;
  int kv_heads;
  int dim;
  bool norm;
  Standing standing;
};

void check_rope(const RopeCase& test, DType dtype) {
  constexpr int kRows = 3, kCapacity = 8, kSlots = 3, kPadding = 4, kStart = 5, kSlot = 1;
  constexpr double kEpsilon = 1e-6;
  const std::vector<int32_t> positions = {7, -1, 2};
  const std::vector<int32_t> own_slots = {2, 1, 0};
  const bool is_prompt = test.standing == Standing::prompt;
  const int q_size = test.heads * test.dim;
  const int kv_size = test.kv_heads * test.dim;
  const int k_offset = q_size + kPadding;
  const int v_offset = k_offset + kv_size + kPadding;
  const int stride = v_offset + kv_size;
  const int64_t cache_size = int64_t{kSlots} * kCapacity * kv_size;
  const at::ScalarType type = scalar_type(dtype);
  const at::Tensor x = random({kRows, stride}, type, 6);
  const at::Tensor angle = random({kCapacity, test.dim / 2}, at::kFloat, 7);
  const at::Tensor q_norm = random({test.dim}, at::kFloat, 8);
  const at::Tensor k_norm = random({test.dim}, at::kFloat, 9);
  const at::Tensor cos = to_device(angle.cos());
  const at::Tensor sin = to_device(angle.sin());
  const at::Tensor device_q_norm = to_device(q_norm);
  const at::Tensor device_k_norm = to_device(k_norm);
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
    args.q_norm = test.norm ? device_q_norm.const_data_ptr<float>() : nullptr;
    args.k_norm = test.norm ? device_k_norm.const_data_ptr<float>() : nullptr;
    args.epsilon = static_cast<float>(kEpsilon);
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
    args.capacity = kCapacity;
    args.dtype = dtype;
    rope_and_cache(args, stream);
    return both;
  });
  const at::Tensor qkv = all.narrow(0, 0, x.numel()).view(x.sizes());
  const at::Tensor caches =
      all.narrow(0, x.numel(), 2 * cache_size).view({2, kSlots, test.kv_heads, kCapacity, test.dim});
  at::Tensor expected = x.to(at::kDouble);
  at::Tensor expected_caches = at::full(caches.sizes(), 7.0, at::kDouble);
  for (int r = 0; r < kRows; ++r) {
    const int p = is_prompt ? kStart + r : positions[r];
    const int slot = is_prompt ? kSlot : test.standing == Standing::slots ? own_slots[r] : r;
    if (p < 0) {
      continue;
    }
    const at::Tensor c = angle[p].cos().to(at::kDouble);
    const at::Tensor s = angle[p].sin().to(at::kDouble);
    at::Tensor q = expected[r].narrow(0, 0, q_size).view({test.heads, test.dim});
    at::Tensor k = expected[r].narrow(0, k_offset, kv_size).view({test.kv_heads, test.dim}).clone();
    const at::Tensor v = expected[r].narrow(0, v_offset, kv_size).view({test.kv_heads, test.dim});
    if (test.norm) {
      q.copy_(normed(q, q_norm, kEpsilon));
      k = normed(k, k_norm, kEpsilon);
    }
    q.copy_(rotated(q, c, s));
    expected_caches[0][slot].select(1, p).copy_(rotated(k, c, s));
    expected_caches[1][slot].select(1, p).copy_(v);
  }
  EXPECT(near(qkv, expected, tolerance(dtype)));
  EXPECT(near(caches, expected_caches, tolerance(dtype)));
}

void rope_rotates_and_fills_the_cache() {
  for (const DType dtype : kDeviceTypes) {
    for (const bool norm : {false, true}) {
      for (const Standing standing : {Standing::rows, Standing::slots, Standing::prompt}) {
        check_rope({4, 2, 10, norm, standing}, dtype);
        check_rope({5, 5, 128, norm, standing}, dtype);
        check_rope({1, 1, 2, norm, standing}, dtype);
      }
    }
  }
}

// ---- attention

struct AttentionCase {
  int heads;
  int kv_heads;
  int dim;
  int capacity;
  int window;
  std::vector<int32_t> positions;
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
        values_(random(keys_.sizes(), scalar_type(dtype), 12)) {
    // Keys and values beyond a row's position must not be read.
    for (int r = 0; r < rows_; ++r) {
      const int64_t seen = test.positions[r] + 1;
      keys_[r].narrow(1, seen, test.capacity - seen).fill_(NAN);
      values_[r].narrow(1, seen, test.capacity - seen).fill_(NAN);
    }
    device_qkv_ = to_device(qkv_);
    device_keys_ = to_device(keys_);
    device_values_ = to_device(values_);
    position_ = to_device(test.positions);
  }

  at::Tensor run(int splits, int first, int rows, Stream stream) const {
    const at::Tensor y = filled({rows, test_.heads, test_.dim}, scalar_type(dtype_), 7.0);
    AttentionArgs args = {};
    const at::Tensor qkv = device_qkv_.narrow(0, first, rows);
    const at::Tensor keys = device_keys_.narrow(0, first, rows);
    const at::Tensor values = device_values_.narrow(0, first, rows);
    args.q = qkv.const_data_ptr();
    args.q_stride = stride_;
    args.k_cache = keys.const_data_ptr();
    args.v_cache = values.const_data_ptr();
    args.y = y.mutable_data_ptr();
    args.places = {rows, position_.const_data_ptr<int32_t>() + first, 0, nullptr, 0, rows};
    args.heads = test_.heads;
    args.kv_heads = test_.kv_heads;
    args.head_dim = test_.dim;
    args.capacity = test_.capacity;
    args.window = test_.window;
    args.scale = scale();
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
      const at::Tensor scores = at::matmul(seen(keys_), q.view({test_.heads, test_.dim, 1})).squeeze(2) * scale();
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
      {"rms_norm divides by the root mean square", rms_norm_divides_by_the_root_mean_square},
      {"swiglu gates", swiglu_gates},
      {"rope rotates and fills the cache", rope_rotates_and_fills_the_cache},
      {"attention averages the values that a row sees", attention_averages_the_values_that_a_row_sees},
      {"attention over a long context", attention_over_a_long_context},
      {"attention refuses what it cannot do", attention_refuses_what_it_cannot_do},
      {"attention is split where that fills the device", attention_is_split_where_that_fills_the_device},
  });
}
