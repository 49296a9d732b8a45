#pragma once

#include <cstdint>
#include <vector>

#include "engine/mask.h"
#include "engine/sequence.h"

namespace dlf::cpu {

// Masks of the sequences that have some, at every position of a step.
class Masks {
 public:
  Masks(int64_t vocab, int64_t max_batch) : vocab_(vocab), slots_(max_batch), masks_(vocab) {}

  // Takes the memory of a sequence.
  void start(const Sequence& sequence);

  // Begins a step, in which `call` writes masks.
  void begin(const CallMasks& call);

  // Wants the masks of a sequence up to the position after its last drafted token; does nothing if it has none. ask()
  // has those that are wanted written.
  void want(Sequence& sequence);
  void ask();

  // Mask of a position, counted from the step's first one; null: any token may follow.
  const int32_t* at(const Sequence& sequence, int64_t position) const;

 private:
  struct Slot {
    std::vector<int32_t> words;  // [max_draft + 1, mask_words(V)]
    int64_t wanted = 0;          // positions of this step
  };

  int64_t vocab_;
  std::vector<Slot> slots_;
  StepMasks masks_;
  const CallMasks* call_ = nullptr;
};

}  // namespace dlf::cpu
