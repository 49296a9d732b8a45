#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <span>
#include <vector>

#include "engine/cache_memory.h"
#include "engine/plan.h"
#include "engine/prompt.h"
#include "engine/sequence.h"
#include "engine/waiting.h"

namespace dlf {

// Decides what a step does: which requests have a slot, and which chunks of their prompts are read before the next
// tokens are decoded. It does not choose where chunks end, so it changes no result.
//
// While requests decode, a step reads chunks up to a budget of tokens, but at least one: a running request waits for
// about one chunk between two of its tokens, however many prompts come. Prompts take turns, so that a short one does
// not wait for all of a long one. While none decodes, every prompt has a turn in every step, of as many chunks as share
// a pass.
//
// A request gets a slot when its prompts fit the caches beside what others hold. If tokens of running requests no
// longer do, the last in turn is put back: it gives its memory away, and later reads its prompts and chosen tokens
// again.
class Scheduler {
 public:
  // `budget`: tokens a step, counted on the lane that reads most; those in the prefix cache don't count. `steps`: a
  // sequence may have chosen and drafted as many tokens as so many steps give before the next make_room().
  Scheduler(const FusionPlan& plan, int64_t max_batch, int64_t budget, CacheMemory& memory, int64_t steps = 1);

  void add(std::unique_ptr<Sequence> sequence);
  void cancel(int64_t request);  // waiting or running; unknown ids are ignored
  void clear();                  // removes all sequences that have a slot
  bool idle() const;

  // Begins a step: finished sequences leave their slots, and waiting ones take them, in turn.
  void admit(PromptReader& reader);

  // Reads prompts. Returns the sequences whose last logits are now there: this step gives the first token of each.
  std::span<Sequence* const> read_prompts(PromptReader& reader);

  // Makes room for the next tokens of the decoding sequences. Those that are put back for it are stopped first.
  using Stop = std::function<void(Sequence&)>;
  void make_room(const Stop& stop);
  // Makes room for these lanes, with all that they may come to. Finished sequences leave their slots.
  void make_room(std::span<const Lane> lanes, const Stop& stop);

  int64_t put_back() const { return put_back_; }  // how often a sequence was

  std::span<Sequence* const> decoding() const { return decoding_; }
  std::span<const std::unique_ptr<Sequence>> slots() const { return slots_; }  // null where a slot is free

 private:
  template <typename Leaves>
  void remove_if(Leaves&& leaves);
  bool reserve(const Sequence& sequence, std::span<Sequence* const> others = {});
  bool claim(const Sequence& sequence);
  void leave(Sequence& sequence);
  Sequence* last_in_turn();
  void put_back(Sequence& sequence, const Stop& stop);

  const FusionPlan& plan_;
  CacheMemory& memory_;
  int64_t steps_;
  int64_t budget_;
  int64_t arrivals_ = 0;
  int64_t put_back_ = 0;
  Waiting waiting_;
  std::vector<std::unique_ptr<Sequence>> slots_;
  std::vector<Sequence*> reading_;   // in the order of their turns
  std::vector<Sequence*> decoding_;  // in the order of their start; finished ones stay until the next step
  std::vector<Sequence*> running_;   // those that have a slot, while others are admitted
};

}  // namespace dlf
