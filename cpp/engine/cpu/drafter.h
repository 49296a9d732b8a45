#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <vector>

#include "engine/cpu/model.h"
#include "engine/drafting/draft_policy.h"
#include "engine/sequence.h"

namespace dlf {

// Drafts the next tokens of sequences, a pass of their drafters for each, before a step verifies them. A draft is what
// the sequence's own sampler chooses by the drafter's logits, with the random number that will choose by the fused
// ones: a drafter that agrees with them is accepted, and what is accepted is what would have come without it.
class CpuDrafter {
 public:
  CpuDrafter(const FusionPlan& plan, std::vector<CpuModel>& models, int64_t max_batch, int64_t max_context);

  // Adds drafts to the texts of those sequences that have read their prompts. Allocates nothing.
  void draft(std::span<const std::unique_ptr<Sequence>> running);

  // What a drafter would say, or said, of one position, before that is known.
  struct Guess {
    int64_t drafter = kAutoDrafter;
    int64_t token = -1;
    int bin = 0;
  };
  struct Guesses {
    Guess by_lane, by_lookup;
  };
  // Of the sequence's next token, which the step has `position` tokens after the first one.
  Guesses guess(Sequence& sequence, int64_t position) const;
  // What came, and the weights it came with.
  void learn(Sequence& sequence, const Guesses& guesses, const StepOutput& output);

 private:
  int64_t room(const Sequence& sequence) const;
  void look_up(Sequence& sequence) const;
  bool pass();
  void catch_up(const Sequence& sequence, Lane& lane);
  void take(Sequence& sequence, const float* logits) const;
  void add(Sequence& sequence, int64_t token, int bin) const;

  const FusionPlan& plan_;
  std::vector<CpuModel>& models_;
  int64_t max_context_;
  DraftPolicy policy_;
  std::vector<Sequence*> sequences_;  // that have read their prompts
  std::vector<Sequence*> drafted_;    // in one pass
};

}  // namespace dlf
