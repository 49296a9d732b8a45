#include "engine/sequence.h"

#include <algorithm>

namespace dlf {

int64_t Prompt::piece_end(int64_t begin, int64_t most) const {
  const auto next = std::upper_bound(breaks.begin(), breaks.end(), begin);
  const int64_t end = std::min(begin + most, static_cast<int64_t>(tokens.size()));
  return next == breaks.end() ? end : std::min(end, *next);
}

int64_t Prompt::pieces_from(int64_t begin, int64_t most) const {
  int64_t count = 0;
  for (const auto size = static_cast<int64_t>(tokens.size()); begin < size; begin = piece_end(begin, most)) {
    ++count;
  }
  return count;
}

}  // namespace dlf
