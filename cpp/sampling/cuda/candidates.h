#pragma once

#include "sampling/cuda/rank_search.h"
#include "sampling/cuda/sampler.h"

// The likely tokens of a row. Top-k and top-p nearly always keep a few hundred of them, so each warp lists those of its
// stretch, and the searches look at nothing else.
namespace dlf::cuda {

inline constexpr int kFewTokens = 256;  // most tokens of a row that its first block ranks alone

struct CandidateLists {
  int32_t tokens[kRowWarps * kMostListed];
};

__device__ inline bool limits_ranks(const SampleRow& options, int32_t vocab) {
  return options.scale > 0 && ((options.top_k > 0 && options.top_k < vocab) || options.top_p < 1);
}

// Lists this warp's tokens that may be kept, in rising order, and their number, which may be more than fit. Returns the
// sum of the measures of all its tokens.
__device__ inline uint64_t list_candidates(const RowBlocks& row, const SampleRow& options, const Slice& slice,
                                           const Measure& measure, RowShared& shared, CandidateLists& lists) {
  // A guess: draw() checks whether the listed tokens are enough once the sums are known.
  constexpr float kShare = 2e-3F;
  constexpr float kLeast = 1e-6F;
  const float least = fmaxf(kShare * static_cast<float>(1 - options.top_p), kLeast);
  const int32_t own = slice.count(row.warp);
  const float* scores = slice.scores + row.warp * slice.stretch;
  int32_t* tokens = lists.tokens + row.warp * kMostListed;
  uint64_t sum = 0;
  uint64_t listed_sum = 0;
  int32_t listed = 0;
#pragma unroll 1
  for (int32_t begin = 0; begin < own; begin += 4 * kWarp) {
    const int32_t i = begin + 4 * row.lane;
    float four[4];
    if (i + 4 <= own) {
      const float4 x = *reinterpret_cast<const float4*>(scores + i);
      four[0] = x.x;
      four[1] = x.y;
      four[2] = x.z;
      four[3] = x.w;
    } else {
#pragma unroll
      for (int j = 0; j < 4; ++j) {
        four[j] = i + j < own ? scores[i + j] : -INFINITY;
      }
    }
    uint64_t measures[4];
    int mine = 0;
#pragma unroll
    for (int j = 0; j < 4; ++j) {
      const float its_weight = weight(four[j], measure.peak, measure.scale);
      measures[j] = fixed_point(its_weight);
      sum += measures[j];
      mine |= its_weight >= least ? 1 << j : 0;
    }
    if (__any_sync(kAllLanes, mine != 0) == 0) {
      continue;
    }
    int32_t place = __popc(mine);
#pragma unroll
    for (int distance = 1; distance < kWarp; distance *= 2) {
      const int32_t other = __shfl_up_sync(kAllLanes, place, distance);
      place += row.lane >= distance ? other : 0;
    }
    const int32_t of_all = __shfl_sync(kAllLanes, place, kWarp - 1);
    place += listed - __popc(mine);
#pragma unroll
    for (int j = 0; j < 4; ++j) {
      if ((mine >> j & 1) != 0) {
        listed_sum += measures[j];
        if (place < kMostListed) {
          tokens[place] = slice.begin + row.warp * slice.stretch + i + j;
        }
        ++place;
      }
    }
    listed += of_all;
  }
  listed_sum = RowBlocks::warp_sum(listed_sum);
  if (row.lane == 0) {
    shared.listed_sums[row.warp] = listed_sum;
    shared.listed_counts[row.warp] = listed;
  }
  return RowBlocks::warp_sum(sum);
}

// Totals over all warps of the row, after a barrier.
struct Listed {
  int32_t count;  // INT_MAX if some did not fit
  uint64_t sum;
};
__device__ inline Listed all_listed(const RowBlocks& row, RowShared* shared) {
  uint64_t count = 0;
  uint64_t sum = 0;
  bool fits = true;
  for (int i = row.lane; i < row.blocks * kRowWarps; i += kWarp) {
    const RowShared* other = row.at_block(shared, i / kRowWarps);
    count += other->listed_counts[i % kRowWarps];
    sum += other->listed_sums[i % kRowWarps];
    fits = fits && other->listed_counts[i % kRowWarps] <= kMostListed;
  }
  sum = RowBlocks::warp_sum(sum);
  count = RowBlocks::warp_sum(count);
  return {__all_sync(kAllLanes, fits) != 0 ? static_cast<int32_t>(count) : INT_MAX, sum};
}

// Draws from up to kFewTokens candidates, one per thread, in the row's first block. `total`: the sum of all measures.
__device__ inline int32_t draw_from_few(RowBlocks& row, const SampleRow& options, const Slice& slice,
                                        const Measure& measure, uint64_t total, int32_t vocab, RowShared* shared,
                                        CandidateLists* lists, double uniform) {
  static_assert(kRowThreads % (8 * kRowWarps) == 0 && kMaxRowBlocks == 8);
  constexpr int kReaders = kRowThreads / (8 * kRowWarps);  // threads per warp's list
  struct Entry {
    uint64_t key;
    uint64_t measure;
  };
  auto* entries = reinterpret_cast<Entry*>(shared->low);  // no histogram uses it now
  static_assert(kFewTokens * sizeof(Entry) <= sizeof(shared->low));
  // Collect the entries in the order of ids.
  const int list = row.thread / kReaders;
  const int block = list / kRowWarps;
  int32_t count = 0;
  if (block < row.blocks) {
    count = row.at_block(shared, block)->listed_counts[list % kRowWarps];
  }
  const RowBlocks::Sums counts = row.scan(row.thread % kReaders == 0 ? static_cast<uint64_t>(count) : 0);
  const int32_t first = static_cast<int32_t>(counts.upto) - count;
  const int32_t all = static_cast<int32_t>(counts.total);
  for (int32_t i = row.thread % kReaders; i < count; i += kReaders) {
    const int32_t token = row.at_block(lists, block)->tokens[list % kRowWarps * kMostListed + i];
    const float score = row.at_block(slice.scores, block)[token - block * slice.length];
    entries[first + i] = {rank_key(score, token), measure.of_score(score)};
  }
  __syncthreads();
  const bool is_one = row.thread < all;
  const Entry mine = is_one ? entries[row.thread] : Entry{0, 0};
  uint64_t above = 0;  // sum of the measures of those that rank higher
  int32_t rank = 0;
  if (is_one) {
#pragma unroll 4
    for (int32_t i = 0; i < all; ++i) {
      const Entry other = entries[i];
      above += other.key > mine.key ? other.measure : 0;
      rank += other.key > mine.key ? 1 : 0;
    }
  }
  bool kept = is_one;
  if (options.top_k > 0 && options.top_k < vocab) {
    kept = kept && rank < options.top_k;
    total = row.scan(kept ? mine.measure : 0).total;
    __syncthreads();
  }
  if (options.top_p < 1) {
    kept = kept && above < greater(Target{options.top_p, 0}.of(total), 1);
  }
  kept =
      kept && !(weight(score_of(static_cast<uint32_t>(mine.key >> 32)), measure.peak, measure.scale) < options.min_p);
  const uint64_t counts_for = kept ? mine.measure : 0;
  const RowBlocks::Sums sums = row.scan(counts_for);
  const uint64_t missing = lesser(greater(Target{uniform, 0}.of(sums.total), 1), sums.total);
  const Place place = row.reach(counts_for, sums.upto, missing);
  return token_of(entries[place.index].key);
}

}  // namespace dlf::cuda
