#pragma once

#include <chrono>
#include <cstdint>

namespace dlf {

// A thread's turn on its core. Whoever loses the core in the middle of some work holds up all who wait for that work,
// so a thread that shares its core gives it away itself, where nobody waits: between two pieces of work.
class Turn {
 public:
  // Whether this thread should rest before more work: others want its core, and it has had it for a while.
  bool over() { return ++asked_ >= asks_ && is_over(); }

  // Lets others have the core.
  void rest();

 private:
  using Clock = std::chrono::steady_clock;
  static constexpr int kMostAsks = 64;
  static constexpr Clock::duration kRead = std::chrono::microseconds(50);
  static constexpr Clock::duration kLook = std::chrono::microseconds(500);
  static constexpr Clock::duration kLongest = std::chrono::microseconds(2500);  // systems give 3 to 4 ms
  static constexpr Clock::duration kMemory = std::chrono::milliseconds(100);

  bool is_over();
  void look(Clock::time_point now);

  int asked_ = 0;  // since the clock was read
  int asks_ = 1;   // from one reading of the clock to the next, which costs as much as a tiny piece of work
  Clock::time_point read_;
  Clock::time_point begun_;
  Clock::time_point looked_;
  Clock::time_point shared_until_;
  int64_t lost_ = 0;   // times that others took the core
  int64_t given_ = 0;  // times that the thread waited for something
};

}  // namespace dlf
