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
// tokens of those that decode. Where the chunks end is not for it to say, so none of this changes a result.
//
// While somebody decodes, a step reads chunks up to a budget of tokens, and one in any case: a running request waits
// for about one chunk between two of its tokens, however many prompts come. They take turns, so that a short one does
// not wait for all of a long one. While nobody decodes, every prompt has a turn in every step.
class Scheduler {
 public:
  // budget: tokens, of the lane that reads most; those that the prefix cache has don't count.
  Scheduler(const FusionPlan& plan, int64_t max_batch, int64_t budget);

  void add(std::unique_ptr<Sequence> sequence) { waiting_.push(std::move(sequence)); }
  void cancel(int64_t request);  // wherever it is; unknown ids are ignored
  void clear();                  // those with a slot are gone
  bool idle() const;

  // Begins a step: sequences that finished in the last one leave their slots, and waiting ones take them.
  void admit();

  // Reads prompts. Returns the sequences whose last logits are there now: the first token of each is due in this step.
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
  std::vector<Sequence*> reading_;   // whose turn comes first is first
  std::vector<Sequence*> decoding_;  // in the order in which they began, finished ones until the next step
};

}  // namespace dlf
