#include "engine/scheduler.h"

#include <algorithm>

namespace dlf {

Scheduler::Scheduler(const FusionPlan& plan, int64_t max_batch, int64_t budget)
    : plan_(plan), budget_(budget), slots_(max_batch) {
  reading_.reserve(max_batch);
  decoding_.reserve(max_batch);
}

template <typename Leaves>
void Scheduler::remove_if(Leaves&& leaves) {
  std::erase_if(reading_, [&](const Sequence* sequence) { return leaves(*sequence); });
  std::erase_if(decoding_, [&](const Sequence* sequence) { return leaves(*sequence); });
  for (std::unique_ptr<Sequence>& sequence : slots_) {
    if (sequence && leaves(*sequence)) {
      sequence.reset();
    }
  }
}

void Scheduler::cancel(int64_t request) {
  waiting_.erase(request);
  remove_if([&](const Sequence& sequence) { return sequence.request == request; });
}

void Scheduler::clear() {
  remove_if([](const Sequence&) { return true; });
}

bool Scheduler::idle() const {
  return waiting_.empty() && reading_.empty() &&
         std::all_of(decoding_.begin(), decoding_.end(), [](const Sequence* sequence) { return sequence->finished(); });
}

void Scheduler::admit() {
  remove_if([](const Sequence& sequence) { return sequence.finished(); });
  for (size_t slot = 0; slot < slots_.size() && !waiting_.empty(); ++slot) {
    if (slots_[slot]) {
      continue;
    }
    slots_[slot] = waiting_.pop();
    Sequence& sequence = *slots_[slot];
    sequence.slot = static_cast<int64_t>(slot);
    occupy(sequence.lanes, sequence.slot, plan_);
    reading_.push_back(&sequence);
  }
}

std::span<Sequence* const> Scheduler::read_prompts(PromptReader& reader) {
  const size_t before = decoding_.size();
  const bool nobody_waits = before == 0;  // for a token
  // Turns outside the budget: the first that reads something; while nobody waits, one of each prompt.
  size_t free_turns = nobody_waits ? reading_.size() : 1;
  int64_t left = budget_;
  if (!reading_.empty()) {
    reader.begin();
    while (!reading_.empty()) {
      Sequence& next = *reading_.front();
      const int64_t tokens = reader.restore(next.lanes, next.cached_tokens);
      if (tokens > std::max<int64_t>(left, 0) && free_turns == 0) {
        break;
      }
      left -= tokens;
      if (free_turns > 0 && (tokens > 0 || nobody_waits)) {
        --free_turns;
      }
      const bool done = reader.read(next.lanes, next.cached_tokens);
      reading_.erase(reading_.begin());
      (done ? decoding_ : reading_).push_back(&next);
    }
    reader.end();
  }
  return std::span(decoding_).subspan(before);
}

}  // namespace dlf
