#include "engine/drafting/pass_times.h"

#include <algorithm>

namespace dlf {

// Counts a pass that took far longer than expected, as when another program had the processor, as twice the expected
// time.
void PassTimes::add(int64_t rows, double seconds) {
  const auto count = static_cast<double>(rows);
  const double known = weight_ > 1 ? std::min(seconds, 2 * of(rows)) : seconds;
  for (double* sum : {&weight_, &rows_, &seconds_, &rows_rows_, &rows_seconds_}) {
    *sum *= 1 - 1 / kMemory;
  }
  weight_ += 1;
  rows_ += count;
  seconds_ += known;
  rows_rows_ += count * count;
  rows_seconds_ += count * known;
}

double PassTimes::of(int64_t rows) const {
  if (rows <= 0 || weight_ == 0) {
    return 0;
  }
  const double mean = seconds_ / weight_;
  return std::max(mean / 4, mean + slope() * (static_cast<double>(rows) - rows_ / weight_));
}

// Least-squares slope, held to a small cost until passes had different numbers of rows.
double PassTimes::slope() const {
  const double mean = seconds_ / weight_;
  const double variance = rows_rows_ / weight_ - rows_ / weight_ * (rows_ / weight_);
  const double covariance = rows_seconds_ / weight_ - rows_ / weight_ * mean;
  constexpr double kHold = 0.25;  // rows²
  return std::max(0.0, (covariance + kHold * kRowCost * mean) / (variance + kHold));
}

}  // namespace dlf
