#include "order.h"

#include <cstdlib>
#include <mutex>
#include <string>
#include <utility>

namespace dlf::emulation {
namespace {

struct Setting {
  Order order = Order::forward;
  uint64_t seed = 0;
};

Setting from_environment() {
  const char* value = std::getenv("DLF_EMULATION_ORDER");
  const std::string name = value == nullptr ? "forward" : value;
  if (name == "forward" || name == "backward") {
    return {name == "forward" ? Order::forward : Order::backward, 0};
  }
  return {Order::random, std::strtoull(name.c_str(), nullptr, 10)};
}

std::mutex mutex;

Setting& setting() {
  static Setting current = from_environment();
  return current;
}

}  // namespace

void set_order(Order order, uint64_t seed) {
  const std::lock_guard lock(mutex);
  setting() = {order, seed};
}

Schedule::Schedule(uint64_t stream) {
  const std::lock_guard lock(mutex);
  order_ = setting().order;
  state_ = setting().seed ^ stream << 32;
}

// SplitMix64 (Steele, Lea, Flood 2014).
uint64_t Schedule::random() {
  uint64_t z = state_ += 0x9e3779b97f4a7c15ULL;
  z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9ULL;
  z = (z ^ (z >> 27)) * 0x94d049bb133111ebULL;
  return z ^ (z >> 31);
}

std::vector<uint64_t> Schedule::permutation(uint64_t count) {
  std::vector<uint64_t> order(count);
  for (uint64_t i = 0; i < count; ++i) {
    order[i] = order_ == Order::backward ? count - 1 - i : i;
  }
  if (is_random()) {
    for (uint64_t i = count; i > 1; --i) {
      std::swap(order[i - 1], order[random() % i]);
    }
  }
  return order;
}

unsigned char Schedule::poison() const {
  switch (order_) {
    case Order::forward:
      return 0xcd;
    case Order::backward:
      return 0x4d;
    case Order::random:
      break;
  }
  return 0xff;
}

}  // namespace dlf::emulation
