#pragma once

#include <chrono>
#include <cstdint>
#include <optional>

namespace dlf::cuda {

// Counts the steps in flight, and times those that the device began right after the one before.
class StepClock {
 public:
  int64_t launched() const { return launched_; }
  int64_t collected() const { return collected_; }
  int64_t on_their_way() const { return launched_ - collected_; }

  void launch() { ++launched_; }

  // Notes that the oldest step in flight has ended. Returns how many seconds it took, if the device began it right
  // after the step before and did nothing else. `followed`: whether the host launches a step as soon as this one lets
  // it, though none is queued.
  std::optional<double> collect(bool followed) {
    const Clock::time_point now = Clock::now();
    std::optional<double> seconds;
    if (last_end_ && collected_ >= timed_from_) {
      seconds = std::chrono::duration<double>(now - *last_end_).count();
    }
    ++collected_;
    last_end_ = on_their_way() > 0 || followed ? std::optional(now) : std::nullopt;
    return seconds;
  }

  // Notes that other work takes the device's time: the steps in flight and the next one are not timed.
  void disturb() { timed_from_ = launched_ + 1; }

 private:
  using Clock = std::chrono::steady_clock;

  int64_t launched_ = 0;
  int64_t collected_ = 0;
  int64_t timed_from_ = 0;  // earlier steps don't show how long their kind takes
  std::optional<Clock::time_point> last_end_;
};

}  // namespace dlf::cuda
