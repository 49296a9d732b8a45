#pragma once

#include <cstdint>
#include <list>
#include <memory>
#include <unordered_map>
#include <utility>

namespace dlf {

// Sequences that wait for a place, in the order in which they came. One that is given up is found by the id of its
// request, however many wait.
template <typename Sequence>
class Waiting {
 public:
  bool empty() const { return queue_.empty(); }

  void push(std::unique_ptr<Sequence> sequence) {
    const auto place = places_.emplace(sequence->request, queue_.end());
    try {
      place->second = queue_.insert(queue_.end(), std::move(sequence));
    } catch (...) {
      places_.erase(place);
      throw;
    }
  }

  std::unique_ptr<Sequence> pop() {
    const auto first = queue_.begin();
    auto place = places_.find((*first)->request);
    while (place->second != first) {  // of requests with one id
      ++place;
    }
    places_.erase(place);
    std::unique_ptr<Sequence> sequence = std::move(*first);
    queue_.erase(first);
    return sequence;
  }

  void erase(int64_t request) {
    const auto [begin, end] = places_.equal_range(request);
    for (auto place = begin; place != end; ++place) {
      queue_.erase(place->second);
    }
    places_.erase(begin, end);
  }

 private:
  using Queue = std::list<std::unique_ptr<Sequence>>;

  Queue queue_;
  std::unordered_multimap<int64_t, typename Queue::iterator> places_;  // by request
};

}  // namespace dlf
