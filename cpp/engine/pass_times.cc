#include "engine/pass_times.h"

#include <algorithm>

namespace dlf {

// A moving average. What takes far longer than before, as when another program had the processor, counts less.
void PassTimes::add(int64_t rows, double seconds) {
  Entry& entry = entries_[std::min(rows, kMostRows)];
  ++passes_;
  if (fresh(entry)) {
    entry.seconds += (std::min(seconds, 2 * entry.seconds) - entry.seconds) / 8;
  } else {
    entry.seconds = seconds;
  }
  entry.pass = passes_;
}

double PassTimes::of(int64_t rows) const {
  if (rows <= 0) {
    return 0;
  }
  rows = std::min(rows, kMostRows);
  int64_t below = rows;
  while (below > 0 && !fresh(entries_[below])) {
    --below;
  }
  int64_t above = rows;
  while (above <= kMostRows && !fresh(entries_[above])) {
    ++above;
  }
  if (above > kMostRows) {
    return below == 0 ? 0 : entries_[below].seconds * (1 + kRowCost * static_cast<double>(rows - below));
  }
  if (below == 0) {
    return entries_[above].seconds;
  }
  if (below == above) {
    return entries_[rows].seconds;
  }
  const double share = static_cast<double>(rows - below) / static_cast<double>(above - below);
  return entries_[below].seconds + share * (entries_[above].seconds - entries_[below].seconds);
}

}  // namespace dlf
