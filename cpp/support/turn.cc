#include "support/turn.h"

#include <sched.h>
#include <sys/resource.h>

#include <algorithm>

namespace dlf {

bool Turn::is_over() {
  const Clock::time_point now = Clock::now();
  asks_ = now - read_ < kRead ? std::min(2 * asks_, kMostAsks) : std::max(asks_ / 2, 1);
  asked_ = 0;
  read_ = now;
  if (now - looked_ > kLook) {
    look(now);
  }
  return now < shared_until_ && now - begun_ > kLongest;
}

// The kernel counts a core that was given away as lost, if somebody took it.
void Turn::look(Clock::time_point now) {
  looked_ = now;
  rusage usage{};
  if (getrusage(RUSAGE_THREAD, &usage) != 0) {
    return;
  }
  if (usage.ru_nivcsw != lost_) {
    shared_until_ = now + kMemory;
  }
  if (usage.ru_nivcsw != lost_ || usage.ru_nvcsw != given_) {
    begun_ = now;
  }
  lost_ = usage.ru_nivcsw;
  given_ = usage.ru_nvcsw;
}

void Turn::rest() {
  sched_yield();
  look(Clock::now());
  begun_ = looked_;
}

}  // namespace dlf
