#include "sampling/cpu/selection.h"

#include <algorithm>
#include <bit>
#include <functional>
#include <limits>

#include "sampling/cpu/sweep.h"

namespace dlf {

RankKey rank_key(float score, int64_t token) {
  const uint32_t bits = std::bit_cast<uint32_t>(score + 0.0f);  // -0 becomes 0
  const uint32_t ordered = (bits & 0x80000000u) != 0 ? ~bits : bits | 0x80000000u;
  return (RankKey{ordered} << 32) | ~static_cast<uint32_t>(token);
}

int64_t token_of(RankKey key) { return static_cast<int64_t>(~static_cast<uint32_t>(key)); }

std::span<RankKey> select_top_k(std::span<const float> scores, int64_t k, std::span<RankKey> buffer) {
  const size_t wanted = static_cast<size_t>(k);
  const size_t capacity = std::min(buffer.size(), scores.size() / 2 < wanted ? scores.size() : 2 * wanted);
  float threshold = -std::numeric_limits<float>::infinity();
  size_t filled = 0;
  for (size_t token = 0; token < scores.size(); ++token) {
    if (!(scores[token] > threshold)) {  // a later token loses a tie, so it must exceed the threshold
      continue;
    }
    if (filled == capacity) {
      std::nth_element(buffer.begin(), buffer.begin() + (wanted - 1), buffer.begin() + filled, std::greater<>());
      filled = wanted;
      threshold = scores[token_of(buffer[wanted - 1])];
      if (!(scores[token] > threshold)) {
        continue;
      }
    }
    buffer[filled++] = rank_key(scores[token], static_cast<int64_t>(token));
  }
  if (filled > wanted) {
    std::nth_element(buffer.begin(), buffer.begin() + (wanted - 1), buffer.begin() + filled, std::greater<>());
    filled = wanted;
  }
  return buffer.first(filled);
}

RankKey nucleus_end(std::span<RankKey> keys, const float* weights, double mass) {
  // A quickselect by weight: [begin, end) holds the end of the nucleus, `before` is the weight of all keys ahead of it.
  double before = 0;
  auto begin = keys.begin();
  auto end = keys.end();
  while (end - begin > 64) {
    const auto middle = begin + (end - begin) / 2;
    std::nth_element(begin, middle, end, std::greater<>());
    double upper = before;
    for (auto key = begin; key != middle; ++key) {
      upper += weights[token_of(*key)];
    }
    if (upper >= mass) {
      end = middle;
    } else {
      begin = middle;
      before = upper;
    }
  }
  std::sort(begin, end, std::greater<>());
  for (auto key = begin; key != end; ++key) {
    before += weights[token_of(*key)];
    if (before >= mass) {
      return *key;
    }
  }
  return *(end - 1);  // rounding left the sum slightly short
}

RankKey nucleus_end(std::span<const float> scores, const uint16_t* bands, const float* weights, double mass,
                    std::span<RankKey> buffer) {
  double band_sums[kBands] = {};
  for (size_t token = 0; token < scores.size(); ++token) {
    band_sums[bands[token]] += weights[token];
  }
  // Only the band in which the nucleus ends has to be ordered.
  int end = 0;
  double before = 0;
  for (int band = 0; band < kBands && before < mass; ++band) {
    if (band_sums[band] > 0) {
      end = band;
      if (before + band_sums[band] >= mass) {
        break;
      }
      before += band_sums[band];
    }
  }
  size_t filled = 0;
  for (size_t token = 0; token < scores.size(); ++token) {
    buffer[filled] = rank_key(scores[token], static_cast<int64_t>(token));
    filled += bands[token] == end && weights[token] > 0 ? 1 : 0;
  }
  return nucleus_end(buffer.first(filled), weights, mass - before);
}

}  // namespace dlf
