#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <vector>

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
// not wait for all of a long one. While none decodes, every prompt has a turn in every step.
class Scheduler {
 public:
  // `budget`: tokens a step, counted on the lane that reads most; those in the prefix cache don't count.
  Scheduler(const FusionPlan& plan, int64_t max_batch, int64_t budget);

  void add(std::unique_ptr<Sequence> sequence) { waiting_.push(std::move(sequence)); }
  void cancel(int64_t request);  // waiting or running; unknown ids are ignored
  void clear();                  // removes all sequences that have a slot
  bool idle() const;

  // Begins a step: finished sequences leave their slots, and waiting ones take them.
  void admit();

  // Reads prompts. Returns the sequences whose last logits are now there: this step gives the first token of each.
  std::span<Sequence* const> read_prompts(PromptReader& reader);

  std::span<Sequence* const> decoding() const { return decoding_; }
  std::span<const std::unique_ptr<Sequence>> slots() const { return slots_; }  // null where a slot is free

 private:
  template <typename Leaves>
  void remove_if(Leaves&& leaves);

  const FusionPlan& plan_;
  int64_t budget_;
  Waiting waiting_;
  std::vector<std::unique_ptr<Sequence>> slots_;
  std::vector<Sequence*> reading_;   // in the order of their turns
  std::vector<Sequence*> decoding_;  // in the order of their start; finished ones stay until the next step
};

}  // namespace dlf
