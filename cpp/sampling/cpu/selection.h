#pragma once

#include <cstdint>
#include <span>

namespace dlf {

// A score and its token in one integer; a greater key ranks higher: the greater score, among equal ones the lower id.
// Selecting by these keys needs no indirection and leaves no ties.
using RankKey = uint64_t;

RankKey rank_key(float score, int64_t token);
int64_t token_of(RankKey key);

// The k tokens of highest rank, unsorted, among those whose score is above -inf; the result is a part of `buffer`,
// which holds at least min(2 k, scores.size()) keys.
std::span<RankKey> select_top_k(std::span<const float> scores, int64_t k, std::span<RankKey> buffer);

// The last key in the smallest set of highest rank whose weights sum to at least `mass`. Reorders the keys.
RankKey nucleus_end(std::span<RankKey> keys, const float* weights, double mass);

// The same among all tokens. bands[token] rises as the score falls and is below kBands; `buffer` holds at least
// scores.size() + 1 keys.
RankKey nucleus_end(std::span<const float> scores, const uint16_t* bands, const float* weights, double mass,
                    std::span<RankKey> buffer);

}  // namespace dlf
