#pragma once

#include <bit>
#include <cstdint>
#include <vector>

#include "emulator.h"

namespace dlf::emulation {

// Chooses the next thread or step, in the order set when the schedule was made. Equal seeds give equal schedules.
class Schedule {
 public:
  explicit Schedule(uint64_t stream = 0);  // different streams give different random numbers

  Order order() const { return order_; }
  bool is_random() const { return order_ == Order::random; }
  // Whether kernels that may start early do so: in every order but forward, which is the host's.
  bool starts_early() const { return order_ != Order::forward; }
  uint64_t random();

  std::vector<uint64_t> permutation(uint64_t count);  // permutation of 0 ... count - 1

  // next() returns the next of `count` that can run after `last`, or count if none can; before_first() is the initial
  // `last`.
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

  // Returns one of the set bits.
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

  // Returns the byte that fills unwritten memory: as floats, large numbers of either sign or NaNs.
  unsigned char poison() const;

 private:
  Order order_;
  uint64_t state_;
};

}  // namespace dlf::emulation
