#pragma once

#include <chrono>
#include <cstdint>
#include <optional>

namespace dlf::cuda {

// Counts the steps on their way, and times those that the device began right after the one before.
class StepClock {
 public:
  int64_t launched() const { return launched_; }
  int64_t collected() const { return collected_; }
  int64_t on_their_way() const { return launched_ - collected_; }

  void launch() { ++launched_; }

  // The oldest step on its way has ended. Returns how many seconds it took, if the device went on at once and did
  // nothing else.
  std::optional<double> collect() {
    const Clock::time_point now = Clock::now();
    std::optional<double> seconds;
    if (last_end_ && collected_ >= timed_from_) {
      seconds = std::chrono::duration<double>(now - *last_end_).count();
    }
    ++collected_;
    last_end_ = on_their_way() > 0 ? std::optional(now) : std::nullopt;
    return seconds;
  }

  // Something else takes the device's time, before the next step or after the last one.
  void disturb() { timed_from_ = launched_ + 1; }

 private:
  using Clock = std::chrono::steady_clock;

  int64_t launched_ = 0;
  int64_t collected_ = 0;
  int64_t timed_from_ = 0;  // steps before say nothing of how long their kind takes
  std::optional<Clock::time_point> last_end_;
};

}  // namespace dlf::cuda
