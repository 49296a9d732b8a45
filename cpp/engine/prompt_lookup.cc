#include "engine/prompt_lookup.h"

#include <algorithm>

namespace dlf {

PromptLookup::Match PromptLookup::find(std::span<const int64_t> tokens) {
  Match best;
  const auto size = static_cast<int64_t>(tokens.size());
  for (int64_t end = size - 1; end > 0 && best.length < kLongest; --end) {
    const int64_t most = std::min(end, kLongest);
    int64_t length = 0;
    while (length < most && tokens[end - 1 - length] == tokens[size - 1 - length]) {
      ++length;
    }
    if (length > best.length) {
      best = {tokens.subspan(end), length};
    }
  }
  return best;
}

}  // namespace dlf
