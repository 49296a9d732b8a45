#pragma once

#include <cstdint>
#include <map>
#include <memory>
#include <unordered_map>
#include <utility>

#include "engine/sequence.h"

namespace dlf {

// Queue of sequences that wait for a slot, by their turns. A cancelled one is found by its request's id, without a
// search.
class Waiting {
 public:
  bool empty() const { return queue_.empty(); }
  Sequence& front() { return *queue_.begin()->second; }

  void push(std::unique_ptr<Sequence> sequence) {
    const auto turn = sequence->turn();
    const auto entry = by_request_.emplace(sequence->request, turn);
    try {
      queue_.emplace(turn, std::move(sequence));
    } catch (...) {
      by_request_.erase(entry);
      throw;
    }
  }

  std::unique_ptr<Sequence> pop() {
    const auto first = queue_.begin();
    auto entry = by_request_.find(first->second->request);
    while (entry->second != first->first) {  // several requests may have one id
      ++entry;
    }
    by_request_.erase(entry);
    std::unique_ptr<Sequence> sequence = std::move(first->second);
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
  using Turn = std::pair<int64_t, int64_t>;  // no two sequences have the same

  std::map<Turn, std::unique_ptr<Sequence>> queue_;
  std::unordered_multimap<int64_t, Turn> by_request_;
};

}  // namespace dlf
