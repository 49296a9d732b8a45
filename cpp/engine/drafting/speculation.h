#pragma once

#include <cstdint>

namespace dlf {

inline constexpr int64_t kMaxDraft = 16;      // tokens that one sequence may be drafted ahead
inline constexpr int64_t kMaxDraftRows = 32;  // drafted tokens of all sequences of one step together

// In place of a drafter's lane.
inline constexpr int64_t kAutoDrafter = -1;   // the plan's drafter, or the expert with the most weight lately
inline constexpr int64_t kPromptLookup = -2;  // what followed the last tokens when they came before

// Whether tokens of a sequence are drafted by something fast, and then verified by one pass of every model over all of
// them (speculative decoding, Leviathan et al., arXiv 2211.17192).
struct Speculation {
  int64_t max_draft = 0;           // tokens drafted before a pass at most; 0: plain decoding
  int64_t drafter = kAutoDrafter;  // a lane, or one of the above
  bool adaptive = true;            // draft fewer, or none, where that is expected to be faster
};

}  // namespace dlf
