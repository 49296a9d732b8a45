#pragma once

#include <cstdint>
#include <span>
#include <vector>

namespace dlf {

// Drafts what followed the last tokens of a text when they came before, as text that quotes its prompt repeats it
// (prompt lookup decoding, Saxena 2023).
class PromptLookup {
 public:
  static constexpr int64_t kLongest = 8;  // tokens that are compared

  // What may follow a text, found at the longest match, of these the last one. It points into the text.
  struct Match {
    std::span<const int64_t> next;
    int64_t length = 0;  // tokens that agreed, at most kLongest
  };
  static Match find(std::span<const int64_t> tokens);

  // How sure it is after so many tokens that agreed, as Acceptance counts.
  static int bin_of(int64_t length) { return static_cast<int>(length < kLongest ? length : kLongest) - 1; }
};

}  // namespace dlf
