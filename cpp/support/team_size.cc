#include "support/team_size.h"

#include <algorithm>

namespace dlf {

void TeamSize::add(double time) {
  ++repetitions_;
  if (trying_ != 0) {
    trial_ += time;
    const double mean = trial_ / static_cast<double>(repetitions_);
    if (repetitions_ == kTrial || (mean > kSlower * mean_ && trial_ > kLongestTrial * mean_)) {
      end_trial(mean < kFaster * mean_);
    }
    return;
  }
  mean_ += (time - mean_) / static_cast<double>(std::min(repetitions_, kTrial));
  if (most_ == 1 || repetitions_ < kTrial) {
    return;
  }
  if (mean_before_ == 0) {
    mean_before_ = mean_;
  }
  if (repetitions_ >= between_ || mean_ > kSlower * mean_before_) {
    begin_trial();
  }
}

// Returns the sizes to try, one after the other.
int TeamSize::other() {
  int found = size_;
  while (found == size_) {
    const int order = trials_++ % 3;
    found = order == 0 ? (size_ + 1) / 2 : order == 1 ? 1 : std::min(2 * size_, most_);
  }
  return found;
}

void TeamSize::begin_trial() {
  trying_ = other();
  trial_ = 0;
  repetitions_ = 0;
}

void TeamSize::end_trial(bool faster) {
  if (faster) {
    size_ = trying_;
    mean_ = trial_ / static_cast<double>(repetitions_);
  }
  between_ = faster ? kLeast : std::min(2 * between_, kMost);
  trying_ = 0;
  mean_before_ = mean_;
  repetitions_ = 0;
}

}  // namespace dlf
