#pragma once

#include <bit>
#include <cstdint>
#include <vector>

#include "emulator.h"

namespace dlf::emulation {

// Who comes next, in the order that was set when the schedule was made. The same seed gives the same schedule.
class Schedule {
 public:
  explicit Schedule(uint64_t stream = 0);  // schedules of different streams of random numbers differ

  Order order() const { return order_; }
  bool is_random() const { return order_ == Order::random; }
  // Whether kernels that may start before the one before them do so: unless all is done as the host asked for it.
  bool starts_early() const { return order_ != Order::forward; }
  uint64_t random();

  std::vector<uint64_t> permutation(uint64_t count);  // of 0 ... count - 1

  // After the one of `count` that ran last, the next that can run; count if none can. Nothing ran before the first.
  unsigned before_first(unsigned count) { return order_ == Order::backward ? 0 : count - 1; }
  template <typename CanRun>
  unsigned next(unsigned last, unsigned count, CanRun&& can_run) {
    const unsigned step = order_ == Order::backward ? count - 1 : 1;
    unsigned index = is_random() ? random() % count : (last + step) % count;
    for (unsigned tried = 0; tried < count; ++tried, index = (index + step) % count) {
      if (can_run(index)) {
        return index;
      }
    }
    return count;
  }

  // One of the set bits.
  unsigned lane(unsigned lanes) {
    if (order_ == Order::forward) {
      return std::countr_zero(lanes);
    }
    if (order_ == Order::backward) {
      return 31 - std::countl_zero(lanes);
    }
    const unsigned start = random() % 32;
    return (std::countr_zero(std::rotr(lanes, static_cast<int>(start))) + start) % 32;
  }

  // What memory holds before it is written: large numbers of either sign, or NaNs.
  unsigned char poison() const;

 private:
  Order order_;
  uint64_t state_;
};

}  // namespace dlf::emulation
