#pragma once

#include <cstdint>
#include <list>
#include <memory>
#include <unordered_map>
#include <utility>

#include "engine/sequence.h"

namespace dlf {

// Queue of sequences that wait for a slot. A cancelled one is found by its request's id, without a search.
class Waiting {
 public:
  bool empty() const { return queue_.empty(); }

  void push(std::unique_ptr<Sequence> sequence) {
    const auto entry = by_request_.emplace(sequence->request, queue_.end());
    try {
      entry->second = queue_.insert(queue_.end(), std::move(sequence));
    } catch (...) {
      by_request_.erase(entry);
      throw;
    }
  }

  std::unique_ptr<Sequence> pop() {
    const auto first = queue_.begin();
    auto entry = by_request_.find((*first)->request);
    while (entry->second != first) {  // several requests may have one id
      ++entry;
    }
    by_request_.erase(entry);
    std::unique_ptr<Sequence> sequence = std::move(*first);
    queue_.erase(first);
    return sequence;
  }

  void erase(int64_t request) {
    const auto [begin, end] = by_request_.equal_range(request);
    for (auto entry = begin; entry != end; ++entry) {
      queue_.erase(entry->second);
    }
    by_request_.erase(begin, end);
  }

 private:
  using Queue = std::list<std::unique_ptr<Sequence>>;

  Queue queue_;
  std::unordered_multimap<int64_t, Queue::iterator> by_request_;
};

}  // namespace dlf
