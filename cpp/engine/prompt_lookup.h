#pragma once

#include <cstdint>
#include <span>
#include <vector>

namespace dlf {

// Drafts the tokens that followed the last ones where these occurred before, as in text that quotes its prompt (prompt
// lookup decoding, Saxena 2023).
class PromptLookup {
 public:
  static constexpr int64_t kLongest = 8;  // most tokens that are compared

  // Tokens after the longest match, the last one if several are as long. They point into the text.
  struct Match {
    std::span<const int64_t> next;
    int64_t length = 0;  // tokens that matched, at most kLongest
  };
  static Match find(std::span<const int64_t> tokens);

  // Acceptance's bin of a match of this length.
  static int bin_of(int64_t length) { return static_cast<int>(length < kLongest ? length : kLongest) - 1; }
};

}  // namespace dlf
