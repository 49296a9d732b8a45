#pragma once

#include "fusion/cuda/sweep.h"
#include "fusion/joint.h"

// The sweeps over several experts at once: the fused logits, and the moments of all differences together.
namespace dlf::cuda {

// The mixed difference δ = Σ α_tδ_t of the tokens of a block; wide where e^δ needs more range than a float has.
struct Mixture {
  const float* alpha;   // [T]
  const Curve* curves;  // [T]
  int experts;
  bool wide;

  __device__ static bool is_wide(const float* alpha, const Curve* curves, int experts) {
    float most = 0.0F;
    for (int t = 0; t < experts; ++t) {
      const float ends = alpha[t] > 0.0F ? curves[t].most : curves[t].least;
      most += alpha[t] == 0.0F ? 0.0F : alpha[t] * (ends - curves[t].centre);
    }
    return !(most <= kReach);
  }

  // Prefetched logits of the first expert whose weight is not 0.
  struct Ahead {
    int expert = -1;  // −1 for none, or if its differences are on the chip
    Slice::Source source = {};
    Four next = {};
  };
  __device__ __forceinline__ Ahead ahead(const Slice& slice) const {
    int first = -1;
    for (int t = experts - 1; t >= 0; --t) {
      first = alpha[t] != 0.0F ? t : first;
    }
    const Slice::Source source = slice.source(first < 0 ? 0 : first);
    Ahead ahead = {source.held ? -1 : first, source};
    fetch(slice, static_cast<int>(threadIdx.x), ahead);
    return ahead;
  }
  __device__ __forceinline__ static void fetch(const Slice& slice, int group, Ahead& ahead) {
    if (ahead.expert >= 0 && group < slice.groups()) {
      ahead.next = slice.fetch(ahead.source, group);
    }
  }

  // Computes δ of four tokens in `sum`, and the same without centres in `raw`.
  __device__ __forceinline__ void delta(const Slice& slice, int group, const Four& large, const Ahead& ahead, Four& sum,
                                        Four& raw) const {
    sum = Four{};
    raw = Four{};
    for (int t = 0; t < experts; ++t) {
      const float weight = alpha[t];
      if (weight == 0.0F) {
        continue;
      }
      const Four delta = t == ahead.expert ? Slice::delta(ahead.source, ahead.next, large, slice.base(t, group, large))
                                           : slice.delta(t, group, large);
#pragma unroll
      for (int j = 0; j < 4; ++j) {
        raw.at[j] = fmaf(weight, delta.at[j], raw.at[j]);
        sum.at[j] = fmaf(weight, delta.at[j] - curves[t].centre, sum.at[j]);
      }
    }
  }

  // Largest exponent of a block; largest_of_block() describes `parts`.
  __device__ float peak(const Slice& slice, float* parts) const {
    float most[1] = {-kInfinity};
    for_groups(slice, [&](int group) {
      const Four large = slice.large(group);
      Four sum;
      Four raw;
      delta(slice, group, large, {}, sum, raw);
#pragma unroll
      for (int j = 0; j < 4; ++j) {
        most[0] = fmaxf(most[0], static_cast<float>(exponent(large.at[j], 1.0, sum.at[j])));
      }
    });
    largest_of_block(most, parts);
    return most[0];
  }
};

// Writes the fused logits. Adds Σpδ, Σpy, Σpyδ to x; if wide, adds Σw, Σwδ relative to the peak to x[1] and x[2].
__device__ __forceinline__ void fuse(const Slice& slice, const Mixture& mixture, float peak, float (&x)[4]) {
  Mixture::Ahead ahead = mixture.ahead(slice);
  for_groups(slice, [&](int group) {
    const Mixture::Ahead now = ahead;
    Mixture::fetch(slice, group + kSolverThreads, ahead);
    const Four large = slice.large(group);
    Four sum;
    Four fused;
    mixture.delta(slice, group, large, now, sum, fused);
#pragma unroll
    for (int j = 0; j < 4; ++j) {
      const float logit = large.at[j];
      const float d = sum.at[j];
      if (mixture.wide) {
        const float w = wide_weight(exponent(logit, 1.0, d), finite_peak(peak));
        x[1] += w;
        x[2] = fmaf(w, d, x[2]);
      } else {
        const TokenSums token(weight_of(logit, peak), d);
        const float y = expm1_fast(d);
        x[0] += token.first;
        x[1] = fmaf(token.weight, y, x[1]);
        x[2] = fmaf(token.first, y, x[2]);
      }
      // A finite logit stays finite.
      const float moved = fminf(fmaxf(logit + fused.at[j], -kLargest), kLargest);
      fused.at[j] = logit == -kInfinity ? logit : moved;
    }
    slice.write(group, fused);
  });
}

// The moments of u = (1, δ_1, …, δ_T) under the fused weights are a symmetric matrix. Its lower triangle is one set of
// sums for up to kFew experts; for more it is cut into tiles of 4 rows and 8 columns, 32 sums each.
constexpr int kFew = 4;
constexpr int kTileRows = 4;
constexpr int kTileColumns = 8;
constexpr int kMostTiles = 9;

struct Tile {
  int row;
  int column;

  __device__ static int count(int experts) {
    if (experts <= kFew) {
      return 1;
    }
    int tiles = 0;
    for (int row = 0; row <= experts; row += kTileRows) {
      tiles += (row + kTileRows - 1) / kTileColumns + 1;
    }
    return tiles;
  }
  // Index of the sum of u_row·u_column; column <= row.
  __device__ static int place(int experts, int row, int column) {
    if (experts <= kFew) {
      return row * (row + 1) / 2 + column;
    }
    const int band = row / kTileRows;
    int tile = column / kTileColumns;
    for (int above = 0; above < band; ++above) {
      tile += (above * kTileRows + kTileRows - 1) / kTileColumns + 1;
    }
    return tile * kWarp + row % kTileRows * kTileColumns + column % kTileColumns;
  }
  __device__ void next() {
    column += kTileColumns;
    if (column >= row + kTileRows) {
      row += kTileRows;
      column = 0;
    }
  }
};

// Weights w of four tokens. Writes the sum of w − p, or of w if wide, to `total`.
__device__ __forceinline__ Four fused_weights(const Mixture& mixture, const Four& large, const Four& sum, float peak,
                                              float& total) {
  Four weight;
  total = 0.0F;
#pragma unroll
  for (int j = 0; j < 4; ++j) {
    if (mixture.wide) {
      weight.at[j] = wide_weight(exponent(large.at[j], 1.0, sum.at[j]), finite_peak(peak));
      total += weight.at[j];
    } else {
      const float p = weight_of(large.at[j], peak);
      const float y = expm1_fast(sum.at[j]);
      weight.at[j] = fmaf(p, y, p);
      total = fmaf(p, y, total);
    }
  }
  return weight;
}

// Adds the sums of w·u_row·u_column for up to kFew experts. Unless wide, the first is the sum of w − p instead of w, so
// that A keeps its digits.
__device__ __forceinline__ void sum_few(const Slice& slice, const Mixture& mixture, float peak, float (&x)[kWarp]) {
  float alpha[kFew];
  float centre[kFew];
#pragma unroll
  for (int t = 0; t < kFew; ++t) {
    const bool there = t < mixture.experts && slice.chosen(t);
    alpha[t] = there ? mixture.alpha[t] : 0.0F;
    centre[t] = there ? mixture.curves[t].centre : 0.0F;
  }
  for_groups(slice, [&](int group) {
    const Four large = slice.large(group);
    Four delta[kFew];
    Four sum = {};
#pragma unroll
    for (int t = 0; t < kFew; ++t) {
      delta[t] = t < mixture.experts && slice.chosen(t) ? slice.delta(t, group, large) : Four{};
#pragma unroll
      for (int j = 0; j < 4; ++j) {
        delta[t].at[j] -= centre[t];
        sum.at[j] = fmaf(alpha[t], delta[t].at[j], sum.at[j]);
      }
    }
    float total;
    const Four weight = fused_weights(mixture, large, sum, peak, total);
    x[0] += total;
#pragma unroll
    for (int j = 0; j < 4; ++j) {
#pragma unroll
      for (int t = 0; t < kFew; ++t) {
        const float moment = delta[t].at[j] * weight.at[j];
        float* row = x + (t + 1) * (t + 2) / 2;
        row[0] += moment;
#pragma unroll
        for (int s = 0; s <= t; ++s) {
          row[1 + s] = fmaf(moment, delta[s].at[j], row[1 + s]);
        }
      }
    }
  });
}

// Adds a tile's sums, bit-identical to those of sum_few().
__device__ __forceinline__ void sum_tile(const Slice& slice, const Mixture& mixture, const Tile& tile, float peak,
                                         float (&x)[kWarp]) {
  const int rows = mixture.experts + 1;
  const auto entry = [&](int index, int group, const Four& large) {  // u_index of four tokens
    Four u = {};
    if (index < rows && (index == 0 || slice.chosen(index - 1))) {
      u = index > 0 ? slice.delta(index - 1, group, large) : Four{{1.0F, 1.0F, 1.0F, 1.0F}};
#pragma unroll
      for (int j = 0; j < 4; ++j) {
        u.at[j] -= index > 0 ? mixture.curves[index - 1].centre : 0.0F;
      }
    }
    return u;
  };
  const bool first = tile.row == 0;
  for_groups(slice, [&](int group) {
    const Four large = slice.large(group);
    Four sum;
    Four raw;
    mixture.delta(slice, group, large, {}, sum, raw);
    float total;
    const Four weight = fused_weights(mixture, large, sum, peak, total);
    Four row[kTileRows];
#pragma unroll
    for (int i = 0; i < kTileRows; ++i) {
      row[i] = entry(tile.row + i, group, large);
#pragma unroll
      for (int j = 0; j < 4; ++j) {
        row[i].at[j] *= weight.at[j];
      }
    }
    const float one = x[0];
#pragma unroll
    for (int k = 0; k < kTileColumns; ++k) {
      const Four column = entry(tile.column + k, group, large);
#pragma unroll
      for (int i = 0; i < kTileRows; ++i) {
#pragma unroll
        for (int j = 0; j < 4; ++j) {
          x[i * kTileColumns + k] = fmaf(row[i].at[j], column.at[j], x[i * kTileColumns + k]);
        }
      }
    }
    x[0] = first ? one + total : x[0];
  });
}

}  // namespace dlf::cuda
