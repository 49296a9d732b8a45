#include <ATen/cpu/vec/functional.h>
#include <ATen/cpu/vec/vec.h>

#include <cmath>

#include "ops/cpu/attention.h"
#include "ops/cpu/softcap.h"

namespace dlf::ops::DLF_CPU {
namespace {

using Vec = at::vec::Vectorized<float>;
constexpr int64_t kBlock = kCacheBlock;  // positions between two rescalings
constexpr int64_t kMaxHeadDim = 512;
constexpr int64_t kPair = 2 * Vec::size();
static_assert(kBlock % kPair == 0);

inline void load(const float* from, Vec (&to)[2]) {
  to[0] = Vec::loadu(from);
  to[1] = Vec::loadu(from + Vec::size());
}

inline void load(const c10::BFloat16* from, Vec (&to)[2]) {
  std::tie(to[0], to[1]) = at::vec::convert_bfloat16_float(at::vec::Vectorized<c10::BFloat16>::loadu(from));
}

// The running softmax of one query.
struct RunningSoftmax {
  float maximum;
  float total;
};

// The H heads that read one key-value head: their queries, softmax and sums.
template <int64_t H>
struct Heads {
  const float* q;  // [H, dim]
  float* sums;     // [H, dim]
  RunningSoftmax softmax[H];
  float scores[H][kBlock];
};

// scores = q · k * scale for the positions [low, high) of a block, and for some beside them.
template <int64_t H, typename Element>
void score(Heads<H>& heads, const Element* keys, int64_t low, int64_t high, int64_t dim, float scale) {
  for (int64_t first = low / kPair * kPair; first < high; first += kPair) {
    Vec totals[H][2];
    for (int64_t h = 0; h < H; ++h) {
      totals[h][0] = Vec(0.0F);
      totals[h][1] = Vec(0.0F);
    }
    for (int64_t i = 0; i < dim; ++i) {
      Vec k[2];
      load(keys + i * kBlock + first, k);
      for (int64_t h = 0; h < H; ++h) {
        const Vec q(heads.q[h * dim + i]);
        totals[h][0] = at::vec::fmadd(q, k[0], totals[h][0]);
        totals[h][1] = at::vec::fmadd(q, k[1], totals[h][1]);
      }
    }
    for (int64_t h = 0; h < H; ++h) {
      (totals[h][0] * Vec(scale)).store(heads.scores[h] + first);
      (totals[h][1] * Vec(scale)).store(heads.scores[h] + first + Vec::size());
    }
  }
}

// Turns the scores [low, high) of a block into weights relative to the largest score so far. Returns the factor for the
// sums of earlier weights. Overwrites scores beside them, up to whole vectors.
inline float soften(float* scores, int64_t low, int64_t high, RunningSoftmax& softmax) {
  float maximum = softmax.maximum;
  for (int64_t j = low; j < high; ++j) {
    maximum = scores[j] > maximum ? scores[j] : maximum;
  }
  const float rescale = std::exp(softmax.maximum - maximum);
  softmax.maximum = maximum;
  for (int64_t j = low / Vec::size() * Vec::size(); j < high; j += Vec::size()) {
    (Vec::loadu(scores + j) - Vec(maximum)).exp().store(scores + j);
  }
  softmax.total *= rescale;
  for (int64_t j = low; j < high; ++j) {
    softmax.total += scores[j];
  }
  return rescale;
}

// sums += Σ scores[j] * values[j] over [low, high).
template <int64_t H, typename Element>
void average(Heads<H>& heads, const Element* values, int64_t low, int64_t high, int64_t dim) {
  int64_t i = 0;
  for (; i + kPair <= dim; i += kPair) {
    Vec sums[H][2];
    for (int64_t h = 0; h < H; ++h) {
      load(heads.sums + h * dim + i, sums[h]);
    }
    for (int64_t j = low; j < high; ++j) {
      Vec v[2];
      load(values + j * dim + i, v);
      for (int64_t h = 0; h < H; ++h) {
        const Vec weight(heads.scores[h][j]);
        sums[h][0] = at::vec::fmadd(weight, v[0], sums[h][0]);
        sums[h][1] = at::vec::fmadd(weight, v[1], sums[h][1]);
      }
    }
    for (int64_t h = 0; h < H; ++h) {
      sums[h][0].store(heads.sums + h * dim + i);
      sums[h][1].store(heads.sums + h * dim + i + Vec::size());
    }
  }
  for (; i < dim; ++i) {
    for (int64_t h = 0; h < H; ++h) {
      float sum = heads.sums[h * dim + i];
      for (int64_t j = low; j < high; ++j) {
        sum += heads.scores[h][j] * static_cast<float>(values[j * dim + i]);
      }
      heads.sums[h * dim + i] = sum;
    }
  }
}

template <int64_t H, typename Element>
void attend(const AttentionArgs& args, int row, const float* q, int64_t kv_head, float* y) {
  const int64_t dim = args.head_dim;
  const int64_t position = args.places.position_of(row);
  if (position < 0) {
    for (int64_t i = 0; i < H * dim; ++i) {
      y[i] = 0.0F;
    }
    return;
  }
  const int64_t slot = args.places.slot_of(row);
  const int64_t end = position + 1;
  const int64_t begin = args.window > 0 && end > args.window ? end - args.window : 0;
  alignas(64) float sums[H * kMaxHeadDim];
  Heads<H> heads;
  heads.q = q;
  heads.sums = sums;
  for (int64_t h = 0; h < H; ++h) {
    heads.softmax[h] = {-INFINITY, 0.0F};
  }
  for (int64_t i = 0; i < H * dim; ++i) {
    sums[i] = 0.0F;
  }
  for (int64_t block = begin / kBlock * kBlock; block < end; block += kBlock) {
    const int64_t low = begin > block ? begin - block : 0;
    const int64_t high = end - block < kBlock ? end - block : kBlock;
    const int64_t cache = cache_offset(args.table.block_of(slot, block), kv_head, args.kv_heads, dim);
    score(heads, static_cast<const Element*>(args.k_cache) + cache, low, high, dim, args.scale);
    for (int64_t h = 0; h < H; ++h) {
      if (args.softcap > 0.0F) {
        cap(heads.scores[h], low, high, args.softcap);
      }
      const float rescale = soften(heads.scores[h], low, high, heads.softmax[h]);
      for (int64_t i = 0; i < dim; ++i) {
        sums[h * dim + i] *= rescale;
      }
    }
    average(heads, static_cast<const Element*>(args.v_cache) + cache, low, high, dim);
  }
  for (int64_t h = 0; h < H; ++h) {
    for (int64_t i = 0; i < dim; ++i) {
      y[h * dim + i] = sums[h * dim + i] / heads.softmax[h].total;
    }
  }
}

// One work item: some query heads of one key-value head of one row.
template <typename Element>
void attend_item(const AttentionArgs& args, int64_t item) {
  const int64_t groups = head_groups(args);
  const auto row = static_cast<int>(item / (args.kv_heads * groups));
  const int64_t kv_head = item / groups % args.kv_heads;
  const int64_t share = args.heads / args.kv_heads;  // query heads of a key-value head
  const int64_t first = item % groups * kAttentionHeads;
  const int64_t head = kv_head * share + first;
  const float* q = static_cast<const float*>(args.q) + static_cast<int64_t>(row) * args.q_stride + head * args.head_dim;
  float* y = static_cast<float*>(args.y) + (static_cast<int64_t>(row) * args.heads + head) * args.head_dim;
  switch (share - first < kAttentionHeads ? share - first : kAttentionHeads) {
    case 1:
      return attend<1, Element>(args, row, q, kv_head, y);
    case 2:
      return attend<2, Element>(args, row, q, kv_head, y);
    case 3:
      return attend<3, Element>(args, row, q, kv_head, y);
    default:
      return attend<4, Element>(args, row, q, kv_head, y);
  }
}

}  // namespace

void attention_kernel(const AttentionArgs& args, int64_t begin, int64_t end) {
  for (int64_t item = begin; item < end; ++item) {
    if (args.dtype == DType::float32) {
      attend_item<float>(args, item);
    } else {
      attend_item<c10::BFloat16>(args, item);
    }
  }
}

}  // namespace dlf::ops::DLF_CPU
