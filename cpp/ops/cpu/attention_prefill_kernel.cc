#include <ATen/cpu/vec/functional.h>
#include <ATen/cpu/vec/vec.h>

#include <cmath>

#include "ops/cpu/attention.h"
#include "ops/cpu/running_softmax.h"

namespace dlf::ops::DLF_CPU {
namespace {

using Vec = at::vec::Vectorized<float>;
constexpr int64_t kBlock = kCacheBlock;
constexpr int64_t kScores = kBlock / Vec::size();  // vectors of one query's scores

// Converts a block of the cache to float32: keys [dim, kBlock] and values [kBlock, dim].
template <typename Element>
void unpack(const Element* k, const Element* v, int64_t count, int64_t dim, float* keys, float* values) {
  for (int64_t i = 0; i < dim * kBlock; ++i) {
    keys[i] = static_cast<float>(k[i]);
  }
  for (int64_t i = 0; i < count * dim; ++i) {
    values[i] = static_cast<float>(v[i]);
  }
}

void score(const float* q, const float* keys, int64_t dim, float scale, float* scores) {
  Vec sums[kScores];
  for (int64_t part = 0; part < kScores; ++part) {
    sums[part] = Vec(0.0F);
  }
  for (int64_t i = 0; i < dim; ++i) {
    const Vec value(q[i]);
    for (int64_t part = 0; part < kScores; ++part) {
      sums[part] = at::vec::fmadd(value, Vec::loadu(keys + i * kBlock + part * Vec::size()), sums[part]);
    }
  }
  for (int64_t part = 0; part < kScores; ++part) {
    (sums[part] * Vec(scale)).store(scores + part * Vec::size());
  }
}

// sums = sums * rescale + Σ scores[j] * values[j] over [low, high), `Vectors` of them at a time.
template <int64_t Vectors>
int64_t average(const float* scores, const float* values, int64_t low, int64_t high, int64_t dim, int64_t begin,
                float rescale, float* sums) {
  int64_t i = begin;
  for (; i + Vectors * Vec::size() <= dim; i += Vectors * Vec::size()) {
    Vec totals[Vectors];
    for (int64_t part = 0; part < Vectors; ++part) {
      totals[part] = Vec::loadu(sums + i + part * Vec::size()) * Vec(rescale);
    }
    for (int64_t j = low; j < high; ++j) {
      const Vec weight(scores[j]);
      for (int64_t part = 0; part < Vectors; ++part) {
        totals[part] = at::vec::fmadd(weight, Vec::loadu(values + j * dim + i + part * Vec::size()), totals[part]);
      }
    }
    for (int64_t part = 0; part < Vectors; ++part) {
      totals[part].store(sums + i + part * Vec::size());
    }
  }
  return i;
}

// Attends from one query to the positions [low, high) of a block.
void attend(const AttentionArgs& args, const float* q, const float* keys, const float* values, int64_t low,
            int64_t high, RunningSoftmax& state, float* sums) {
  const int64_t dim = args.head_dim;
  float scores[kBlock];
  score(q, keys, dim, args.scale, scores);
  if (args.softcap > 0.0F) {
    cap(scores, low, high, args.softcap);
  }
  const float rescale = soften(scores, low, high, state);
  int64_t i = average<4>(scores, values, low, high, dim, 0, rescale, sums);
  i = average<1>(scores, values, low, high, dim, i, rescale, sums);
  for (; i < dim; ++i) {
    float total = sums[i] * rescale;
    for (int64_t j = low; j < high; ++j) {
      total += scores[j] * values[j * dim + i];
    }
    sums[i] = total;
  }
}

// Attends all query heads of one key-value head for kPrefillChunk rows: each block of the cache is unpacked once.
template <typename Element>
void attend_chunk(const AttentionArgs& args, int64_t kv_head, int64_t first_row, const PrefillScratch& scratch) {
  const int64_t dim = args.head_dim;
  const int64_t group = args.heads / args.kv_heads;
  const int64_t end_row = first_row + kPrefillChunk < args.places.rows ? first_row + kPrefillChunk : args.places.rows;
  const int64_t queries = (end_row - first_row) * group;
  const int64_t slot = args.places.slot_of(0);
  const auto* k = static_cast<const Element*>(args.k_cache);
  const auto* v = static_cast<const Element*>(args.v_cache);
  const auto position_of = [&](int64_t row) -> int64_t { return args.places.position_of(static_cast<int>(row)); };
  const auto first_seen = [&](int64_t position) {
    return args.window > 0 && position >= args.window ? position - args.window + 1 : 0;
  };
  for (int64_t query = 0; query < queries; ++query) {
    scratch.queries[query] = {-INFINITY, 0.0F};
  }
  for (int64_t i = 0; i < queries * dim; ++i) {
    scratch.sums[i] = 0.0F;
  }
  const int64_t last = position_of(end_row - 1) + 1;
  const int64_t begin = first_seen(position_of(first_row)) / kBlock * kBlock;
  for (int64_t block = begin; block < last; block += kBlock) {
    const int64_t count = last - block < kBlock ? last - block : kBlock;
    const int64_t cache = cache_offset(args.table.block_of(slot, block), kv_head, args.kv_heads, dim);
    unpack(k + cache, v + cache, count, dim, scratch.keys, scratch.values);
    for (int64_t query = 0; query < queries; ++query) {
      const int64_t row = first_row + query / group;
      const int64_t head = kv_head * group + query % group;
      const int64_t position = position_of(row);
      const int64_t first = first_seen(position) - block;
      const int64_t low = first > 0 ? first : 0;
      const int64_t high = position + 1 - block < count ? position + 1 - block : count;
      if (low < high) {
        const float* q = static_cast<const float*>(args.q) + row * args.q_stride + head * dim;
        attend(args, q, scratch.keys, scratch.values, low, high, scratch.queries[query], scratch.sums + query * dim);
      }
    }
  }
  for (int64_t query = 0; query < queries; ++query) {
    const int64_t row = first_row + query / group;
    float* y = static_cast<float*>(args.y) + (row * args.heads + kv_head * group + query % group) * dim;
    for (int64_t i = 0; i < dim; ++i) {
      y[i] = scratch.sums[query * dim + i] / scratch.queries[query].total;
    }
  }
}

}  // namespace

void prefill_attention_kernel(const AttentionArgs& args, const PrefillScratch& scratch, int64_t begin, int64_t end) {
  const int64_t chunks = (args.places.rows + kPrefillChunk - 1) / kPrefillChunk;
  for (int64_t item = begin; item < end; ++item) {
    if (args.dtype == DType::float32) {
      attend_chunk<float>(args, item / chunks, item % chunks * kPrefillChunk, scratch);
    } else {
      attend_chunk<c10::BFloat16>(args, item / chunks, item % chunks * kPrefillChunk, scratch);
    }
  }
}

}  // namespace dlf::ops::DLF_CPU
