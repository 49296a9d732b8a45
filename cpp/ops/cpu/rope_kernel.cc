#include <c10/util/BFloat16.h>

#include "ops/cpu/cache_layout.h"
#include "ops/cpu/rope.h"

namespace dlf::ops::DLF_CPU {
namespace {

void rotate(const float* from, float* to, const float* cos, const float* sin, int64_t half, int64_t dim) {
  for (int64_t i = 0; i < half; ++i) {
    const float a = from[i];
    const float b = from[i + half];
    to[i] = a * cos[i] - b * sin[i];
    to[i + half] = b * cos[i] + a * sin[i];
  }
  for (int64_t i = 2 * half; i < dim; ++i) {
    to[i] = from[i];
  }
}

void clip(float* x, int64_t size, float bound) {
  for (int64_t i = 0; i < size; ++i) {  // a NaN stays one
    x[i] = x[i] > bound ? bound : x[i] < -bound ? -bound : x[i];
  }
}

template <typename Element>
void rope_rows(const RopeArgs& args, int64_t begin, int64_t end) {
  constexpr int64_t kMaxHeadDim = 512;
  const int64_t dim = args.head_dim;
  const int64_t half = args.rotated / 2;
  float rotated[kMaxHeadDim];
  for (int64_t r = begin; r < end; ++r) {
    const int row = static_cast<int>(r);
    const int64_t position = args.places.position_of(row);
    if (position < 0) {
      continue;
    }
    const float* cos = args.cos + position * half;
    const float* sin = args.sin + position * half;
    if (args.clip > 0) {
      clip(static_cast<float*>(args.q) + r * args.q_stride, args.heads * dim, args.clip);
      clip(static_cast<float*>(args.k) + r * args.kv_stride, args.kv_heads * dim, args.clip);
      clip(static_cast<float*>(args.v) + r * args.kv_stride, args.kv_heads * dim, args.clip);
    }
    for (int64_t head = 0; head < args.heads; ++head) {
      float* q = static_cast<float*>(args.q) + r * args.q_stride + head * dim;
      rotate(q, q, cos, sin, half, dim);
      for (int64_t i = 0; args.q_scale != nullptr && i < dim; ++i) {
        q[i] *= args.q_scale[position];
      }
    }
    const int64_t block = args.table.block_of(args.places.slot_of(row), position);
    for (int64_t head = 0; head < args.kv_heads; ++head) {
      const int64_t from = r * args.kv_stride + head * dim;
      const int64_t to = cache_offset(block, head, args.kv_heads, dim);
      rotate(static_cast<const float*>(args.k) + from, rotated, cos, sin, half, dim);
      const float* value = static_cast<const float*>(args.v) + from;
      Element* k = static_cast<Element*>(args.k_cache) + to + key_offset(position, 0);
      Element* v = static_cast<Element*>(args.v_cache) + to + value_offset(position, dim);
      for (int64_t i = 0; i < dim; ++i) {
        k[i * kCacheBlock] = static_cast<Element>(rotated[i]);
        v[i] = static_cast<Element>(value[i]);
      }
    }
  }
}

}  // namespace

void rope_and_cache_kernel(const RopeArgs& args, int64_t begin, int64_t end) {
  if (args.dtype == DType::float32) {
    rope_rows<float>(args, begin, end);
  } else {
    rope_rows<c10::BFloat16>(args, begin, end);
  }
}

}  // namespace dlf::ops::DLF_CPU
