#include <ATen/cpu/vec/functional.h>
#include <ATen/cpu/vec/vec.h>

#include <cmath>

#include "ops/attention.h"

namespace dlf::ops::DLF_CPU {
namespace {

using Vec = at::vec::Vectorized<float>;
constexpr int64_t kBlock = 64;  // cache positions between two rescalings
constexpr int64_t kMaxHeadDim = 512;

inline Vec load(const float* from, int64_t count) { return Vec::loadu(from, count); }

inline Vec load(const c10::BFloat16* from, int64_t count) {
  if (count == Vec::size()) {
    Vec values;
    at::vec::load_fp32_from_bf16(from, values);
    return values;
  }
  float values[Vec::size()];
  for (int64_t i = 0; i < Vec::size(); ++i) {
    values[i] = i < count ? static_cast<float>(from[i]) : 0.0F;
  }
  return Vec::loadu(values);
}

template <typename Element>
float dot(const float* q, const Element* k, int64_t dim) {
  Vec total(0.0F);
  for (int64_t i = 0; i < dim; i += Vec::size()) {
    const int64_t count = dim - i < Vec::size() ? dim - i : Vec::size();
    total = at::vec::fmadd(load(q + i, count), load(k + i, count), total);
  }
  return at::vec::vec_reduce_all<float>([](Vec a, Vec b) { return a + b; }, total);
}

template <typename Element>
void attend(const AttentionArgs& args, int64_t item) {
  const int64_t dim = args.head_dim;
  const Row& row = args.row[item / args.heads];
  const int64_t kv_head = item % args.heads / (args.heads / args.kv_heads);
  const float* q = args.q + item * dim;
  const int64_t cache = (row.slot * args.kv_heads + kv_head) * args.max_context * dim;
  const Element* k = static_cast<const Element*>(args.k_cache) + cache;
  const Element* v = static_cast<const Element*>(args.v_cache) + cache;

  const int64_t last = row.position + 1;
  const int64_t first = args.window > 0 && last > args.window ? last - args.window : 0;
  float sums[kMaxHeadDim] = {};
  float scores[kBlock];
  float maximum = -INFINITY;
  float total = 0.0F;
  for (int64_t block = first; block < last; block += kBlock) {
    const int64_t count = last - block < kBlock ? last - block : kBlock;
    float block_maximum = maximum;
    for (int64_t j = 0; j < count; ++j) {
      scores[j] = dot(q, k + (block + j) * dim, dim) * args.scale;
      block_maximum = scores[j] > block_maximum ? scores[j] : block_maximum;
    }
    const float rescale = std::exp(maximum - block_maximum);
    maximum = block_maximum;
    total *= rescale;
    for (int64_t i = 0; i < dim; ++i) {
      sums[i] *= rescale;
    }
    for (int64_t j = 0; j < count; j += Vec::size()) {
      const int64_t part = count - j < Vec::size() ? count - j : Vec::size();
      (Vec::loadu(scores + j, part) - Vec(maximum)).exp().store(scores + j, static_cast<int>(part));
    }
    for (int64_t j = 0; j < count; ++j) {
      total += scores[j];
      const Vec weight(scores[j]);
      for (int64_t i = 0; i < dim; i += Vec::size()) {
        const int64_t part = dim - i < Vec::size() ? dim - i : Vec::size();
        at::vec::fmadd(weight, load(v + (block + j) * dim + i, part), load(sums + i, part))
            .store(sums + i, static_cast<int>(part));
      }
    }
  }
  float* y = args.y + item * dim;
  for (int64_t i = 0; i < dim; ++i) {
    y[i] = sums[i] / total;
  }
}

}  // namespace

void attention_kernel(const AttentionArgs& args, int64_t begin, int64_t end) {
  for (int64_t item = begin; item < end; ++item) {
    if (args.dtype == DType::float32) {
      attend<float>(args, item);
    } else {
      attend<c10::BFloat16>(args, item);
    }
  }
}

}  // namespace dlf::ops::DLF_CPU
