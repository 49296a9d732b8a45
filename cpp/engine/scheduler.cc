#include "engine/scheduler.h"

#include <algorithm>

namespace dlf {

Scheduler::Scheduler(const FusionPlan& plan, int64_t max_batch, int64_t budget, CacheMemory& memory, int64_t steps)
    : plan_(plan), memory_(memory), steps_(steps), budget_(budget), slots_(max_batch) {
  for (std::vector<Sequence*>* sequences : {&reading_, &decoding_, &running_}) {
    sequences->reserve(max_batch);
  }
}

void Scheduler::add(std::unique_ptr<Sequence> sequence) {
  sequence->arrival = arrivals_++;
  waiting_.push(std::move(sequence));
}

template <typename Leaves>
void Scheduler::remove_if(Leaves&& leaves) {
  std::erase_if(reading_, [&](const Sequence* sequence) { return leaves(*sequence); });
  std::erase_if(decoding_, [&](const Sequence* sequence) { return leaves(*sequence); });
  for (std::unique_ptr<Sequence>& sequence : slots_) {
    if (sequence && leaves(*sequence)) {
      memory_.release(sequence->lanes);
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

void Scheduler::admit(PromptReader& reader) {
  remove_if([](const Sequence& sequence) { return sequence.finished(); });
  for (size_t slot = 0; slot < slots_.size() && !waiting_.empty(); ++slot) {
    if (slots_[slot]) {
      continue;
    }
    Sequence& next = waiting_.front();
    next.slot = static_cast<int64_t>(slot);
    occupy(next.lanes, next.slot, plan_);
    try {
      reader.restore(next.reading());
      if (!claim(next)) {
        return leave(next);
      }
    } catch (...) {
      leave(next);
      throw;
    }
    slots_[slot] = waiting_.pop();
    reading_.push_back(&next);
  }
}

// Gives a sequence room for its prompts and first tokens.
bool Scheduler::claim(const Sequence& sequence) {
  running_ = decoding_;
  running_.insert(running_.end(), reading_.begin(), reading_.end());
  if (reserve(sequence, running_)) {
    return true;
  }
  if (!running_.empty()) {
    return false;
  }
  memory_.forget();
  return reserve(sequence);
}

// Takes the slot and the memory of a sequence, which waits.
void Scheduler::leave(Sequence& sequence) {
  memory_.release(sequence.lanes);
  sequence.slot = -1;
  sequence.draft.size = 0;
  if (sequence.new_tokens == 0) {
    sequence.cached_tokens = 0;
  }
}

std::span<Sequence* const> Scheduler::read_prompts(PromptReader& reader) {
  const size_t before = decoding_.size();
  const bool nobody_waits = before == 0;  // for a token
  // Turns outside the budget: the first that reads something; while nobody waits, a longer one of each prompt.
  size_t free_turns = nobody_waits ? reading_.size() : 1;
  int64_t left = budget_;
  if (!reading_.empty()) {
    reader.begin();
    while (!reading_.empty()) {
      Sequence& next = *reading_.front();
      const int64_t tokens = reader.restore(next.reading());
      if (tokens > std::max<int64_t>(left, 0) && free_turns == 0) {
        break;
      }
      left -= tokens;
      if (free_turns > 0 && (tokens > 0 || nobody_waits)) {
        --free_turns;
      }
      const bool done = reader.read(next.reading(), nobody_waits ? reader.most_rounds() : 1);
      reading_.erase(reading_.begin());
      (done ? decoding_ : reading_).push_back(&next);
    }
    reader.end();
  }
  return std::span(decoding_).subspan(before);
}

void Scheduler::make_room(const Stop& stop) {
  for (size_t i = 0; i < decoding_.size();) {
    Sequence& sequence = *decoding_[i];
    if (reserve(sequence)) {
      memory_.settle(sequence.lanes);
      ++i;
      continue;
    }
    if (decoding_.size() + reading_.size() == 1) {
      memory_.forget();
      if (reserve(sequence)) {
        continue;
      }
    }
    put_back(*last_in_turn(), stop);
    i = 0;
  }
}

void Scheduler::make_room(std::span<const Lane> lanes, const Stop& stop) {
  remove_if([](const Sequence& sequence) { return sequence.finished(); });
  while (!memory_.reserve(lanes, [](const Lane& lane) { return lane.most; })) {
    if (Sequence* last = last_in_turn()) {
      put_back(*last, stop);
    } else {
      memory_.forget();
    }
  }
}

// Gives a sequence room for its next tokens.
bool Scheduler::reserve(const Sequence& sequence, std::span<Sequence* const> others) {
  const int64_t ahead = steps_ * (1 + sequence.draft.options.max_draft);
  return memory_.reserve(sequence.lanes, [&](const Lane& lane) { return sequence.positions(lane, ahead); }, others);
}

Sequence* Scheduler::last_in_turn() {
  Sequence* last = nullptr;
  for (const std::unique_ptr<Sequence>& sequence : slots_) {
    if (sequence && !sequence->finished() && (last == nullptr || sequence->turn() > last->turn())) {
      last = sequence.get();
    }
  }
  return last;
}

void Scheduler::put_back(Sequence& sequence, const Stop& stop) {
  stop(sequence);
  std::erase(reading_, &sequence);
  std::erase(decoding_, &sequence);
  std::unique_ptr<Sequence> owned = std::move(slots_[sequence.slot]);
  leave(sequence);
  waiting_.push(std::move(owned));
  ++put_back_;
}

}  // namespace dlf
