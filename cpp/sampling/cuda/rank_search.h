#pragma once

#include <climits>

#include "sampling/cuda/row_blocks.h"

// Finds the end of a set of tokens that is chosen by rank (top-k, top-p) or by id (a draw), without sorting: by
// histograms over ever narrower ranges of scores.
namespace dlf::cuda {

// Maps scores to integers of the same order; -0 counts as 0.
__device__ inline uint32_t ordered(float score) {
  const uint32_t bits = __float_as_uint(score + 0.0f);
  return (bits & 0x80000000u) != 0 ? ~bits : bits | 0x80000000u;
}
__device__ inline float score_of(uint32_t key) {
  return __uint_as_float((key & 0x80000000u) != 0 ? key & 0x7fffffffu : ~key);
}
inline constexpr uint32_t kExcludedKey = 0x007fffff;  // ordered(-inf)
inline constexpr uint32_t kInfiniteKey = 0xff800000;  // ordered(+inf)

// A score and its token in one integer: the greater score first, among equal ones the lower id.
__device__ inline uint64_t rank_key(float score, int32_t token) {
  return (uint64_t{ordered(score)} << 32) | ~static_cast<uint32_t>(token);
}
__device__ inline int32_t token_of(uint64_t rank_key) { return static_cast<int32_t>(~static_cast<uint32_t>(rank_key)); }

// Keeps tokens whose score is above a key, or at it up to a token.
struct Limit {
  uint32_t key = kExcludedKey;
  int32_t token = -1;

  __device__ bool keeps(uint32_t other_key, int32_t other_token) const {
    return other_key > key || (other_key == key && other_token <= token);
  }
};

// Weight of a token, and the same as an integer, so that sums are exact: it is 2^44 for the peak, and at most 2^19
// tokens are added.
__device__ inline float weight(float score, float peak, float scale) { return expf((score - peak) * scale); }
__device__ inline uint64_t fixed_point(float weight) { return static_cast<uint64_t>(weight * 0x1p44f); }
inline constexpr double kFixedPointUnit = 0x1p-44;

inline constexpr int kMostListed = 128;  // most tokens that a warp lists

// This block's tokens of a row. Each warp handles a stretch of them, or only the listed ones of its stretch.
struct Slice {
  float* scores;  // [end - begin]
  int32_t begin;
  int32_t end;
  int32_t length;                   // of every slice but the last ones
  int32_t stretch;                  // of every warp but the last ones
  const int32_t* listed = nullptr;  // [kRowWarps, kMostListed], rising
  const int32_t* listed_counts = nullptr;

  __device__ float score(int32_t token) const { return scores[token - begin]; }
  __device__ int32_t count(int warp) const {
    return listed != nullptr ? listed_counts[warp] : max(0, min(stretch, end - begin - warp * stretch));
  }
  __device__ int32_t token(int warp, int32_t i) const {
    return listed != nullptr ? listed[warp * kMostListed + i] : begin + warp * stretch + i;
  }
};

// What a token counts for in a search: its weight, or 1.
struct Measure {
  bool weighs;
  float peak;
  float scale;
  float least_weight = 0;
  Limit within = {};  // other tokens count 0
  uint32_t highest_key = kInfiniteKey;

  __device__ uint64_t of_score(float score) const {
    if (!weighs) {
      return 1;
    }
    const float its_weight = weight(score, peak, scale);
    return its_weight >= least_weight ? fixed_point(its_weight) : 0;
  }
  __device__ uint64_t of(float score, int32_t token) const {
    const uint32_t key = ordered(score);
    return key <= highest_key && within.keeps(key, token) ? of_score(score) : 0;
  }
};

// Wanted sum of the measures: a share of their total, or a given sum.
struct Target {
  double share = 0;
  uint64_t sum = 0;

  __device__ uint64_t of(uint64_t total) const {
    return share == 0 ? sum : static_cast<uint64_t>(ceil(share * static_cast<double>(total)));
  }
};

// First token, by id, at which the sum of the measures reaches the target, which is clamped to 1 .. their total. Not
// inlined, like the search below: code that runs once takes longer to fetch than to run.
__attribute__((noinline)) __device__ inline int32_t find_token(RowBlocks& row, const Slice& slice,
                                                               const Measure& measure, const Target& target) {
  // Find the warp's stretch of ids first, then the token in it.
  uint64_t sum = 0;
  const int32_t own = slice.count(row.warp);
#pragma unroll 4
  for (int32_t i = row.lane; i < own; i += kWarp) {
    const int32_t token = slice.token(row.warp, i);
    sum += measure.of(slice.score(token), token);
  }
  row.show(RowBlocks::warp_sum(sum));
  const uint64_t shown = row.thread < row.blocks * kRowWarps ? row.shown(0, row.thread) : 0;
  RowBlocks::Sums sums = row.scan(shown);
  uint64_t missing = lesser(greater(target.of(sums.total), 1), sums.total);
  const Place place = row.reach(shown, sums.upto, missing);
  missing -= place.before;
  const int block = place.index / kRowWarps;
  if (row.rank == block) {
    const int warp = place.index % kRowWarps;
    const int32_t count = slice.count(warp);
    const int32_t piece = (count + kRowThreads - 1) / kRowThreads;
    const int32_t begin = row.thread * piece;
    const int32_t end = min(begin + piece, count);
    const auto measured = [&](int32_t i) {
      const int32_t token = slice.token(warp, i);
      return measure.of(slice.score(token), token);
    };
    sum = 0;
#pragma unroll 1
    for (int32_t i = begin; i < end; ++i) {
      sum += measured(i);
    }
    sums = row.scan(sum);
    uint64_t before = sums.upto - sum;
    if (before < missing && sums.upto >= missing) {
      int32_t i = begin;
#pragma unroll 1
      while ((before += measured(i)) < missing) {
        ++i;
      }
      row.tell_token(slice.token(warp, i));
    }
  }
  return row.told_token(block);
}

// Bands of equal width below the peak; their number rises as the score falls. The last one is open.
struct Bands {
  float peak;
  float per_unit;

  __device__ int of(float score) const {
    const float distance = (peak - score) * per_unit;
    return distance < kBins - 1 ? static_cast<int>(distance) : kBins - 1;
  }
  // Lowest key of a band, found by bisection because of() rounds. For band -1, the key above the peak's.
  __device__ uint32_t lowest_key(int band) const {
    uint32_t low = kExcludedKey + 1;
    uint32_t high = ordered(peak) + 1;
    while (low < high) {
      const uint32_t middle = low + (high - low) / 2;
      if (of(score_of(middle)) <= band) {
        high = middle;
      } else {
        low = middle + 1;
      }
    }
    return low;
  }
};

// Limit of the smallest set of highest rank whose measures reach the target, or the measure's own limit if this takes
// all its tokens. `total`: the sum of all measures if the slice lists only some tokens, else 0.
__attribute__((noinline)) __device__ inline Limit find_limit(RowBlocks& row, const Slice& slice, const Measure& measure,
                                                             const Target& target, uint64_t total) {
  // Find the band in which the set ends first, then ever fewer keys from low to high, down to one key or one token.
  // Bands of an eighth of a unit, of score or of log-weight, whichever is finer, spread the tokens so that few threads
  // add to one bin at once.
  const Bands bands{measure.peak, 8 * fmaxf(measure.scale, 1.0f)};
  constexpr int kBands = -1;
  int shift = kBands;
  uint32_t low = kExcludedKey + 1;
  uint32_t high = ordered(measure.peak);
  uint64_t missing = 0;
  Place place;
  do {
    row.begin_histogram();
    const int32_t own = slice.count(row.warp);
#pragma unroll 4
    for (int32_t i = row.lane; i < own; i += kWarp) {
      const int32_t token = slice.token(row.warp, i);
      const float score = slice.score(token);
      const uint32_t key = ordered(score);
      if (low <= key && key <= high) {
        const uint64_t counts_for = measure.of(score, token);
        if (counts_for > 0) {
          row.add(shift == kBands ? bands.of(score) : static_cast<int>((high - key) >> shift), counts_for);
        }
      }
    }
    const uint64_t bin_sum = row.bin_sum();
    const RowBlocks::Sums sums = row.scan(bin_sum);
    if (shift == kBands) {
      total = greater(total, sums.total);
      missing = greater(target.of(total), 1);
      if (missing >= total) {
        return measure.within;
      }
    }
    place = row.reach(bin_sum, sums.upto, missing);
    missing -= place.before;
    if (shift == kBands) {
      const uint32_t border = bands.lowest_key(place.index - row.lane % 2);
      low = __shfl_sync(kAllLanes, border, 0);
      high = __shfl_sync(kAllLanes, border, 1) - 1;
    } else {
      const uint32_t width = 1u << shift;
      high -= static_cast<uint32_t>(place.index) << shift;
      low = high - low < width ? low : high - width + 1;
    }
    if (!measure.weighs && place.here == 1) {
      return {low, INT_MAX};
    }
    shift = max(0, 32 - __clz(static_cast<int>(high - low)) - kBinBits);
  } while (low < high);

  // Among the tokens that share this key, the set takes those of the lowest ids.
  const uint64_t each = measure.of_score(score_of(low));
  const uint64_t wanted = (missing + each - 1) / each;
  Measure tied{false, measure.peak, measure.scale, 0, {low, INT_MAX}, low};
  if (low == measure.within.key) {
    tied.within.token = measure.within.token;
  }
  if (wanted == place.here / each) {
    return tied.within;
  }
  return {low, find_token(row, slice, tied, {0, wanted})};
}

}  // namespace dlf::cuda
