#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <vector>

#include "engine/cpu/model.h"
#include "engine/drafting/draft_policy.h"
#include "engine/sequence.h"
#include "sampling/cpu/sampler.h"

namespace dlf::cpu {

using Samplers = std::vector<std::unique_ptr<Sampler>>;  // by slot, of those that decode

// Drafts the next tokens of sequences, a pass of their drafters for each, before a step verifies them. A draft is what
// the sequence's own sampler chooses by the drafter's logits, with the random number that will choose by the fused
// ones: a drafter that agrees with them is accepted, and what is accepted is what would have come without it.
class Drafter {
 public:
  Drafter(const FusionPlan& plan, std::vector<Model>& models, const Samplers& samplers, int64_t max_batch);

  // Adds drafts to the tokens of those sequences that have new ones. Allocates nothing.
  void draft(std::span<Sequence* const> sequences);

  // What a drafter would say, or said, of one position, before that is known.
  struct Guess {
    int64_t drafter = kAutoDrafter;
    int64_t token = -1;
    int bin = 0;
  };
  struct Guesses {
    Guess by_lane, by_lookup;
  };
  // Guesses a sequence's next token, which the step has `position` tokens after the first one.
  Guesses guess(Sequence& sequence, int64_t position) const;
  // Takes in what came, and the weights it came with.
  void learn(Sequence& sequence, const Guesses& guesses, const StepOutput& output);

 private:
  void look_up(Sequence& sequence) const;
  bool pass();
  void catch_up(const Sequence& sequence, Lane& lane);
  Sampler& sampler(const Sequence& sequence) const { return *samplers_[sequence.slot]; }
  std::optional<Sample> sample(const Sequence& sequence, const float* logits, int64_t step) const;
  void take(Sequence& sequence) const;
  void add(Sequence& sequence, int64_t token, int bin) const;

  const FusionPlan& plan_;
  std::vector<Model>& models_;
  const Samplers& samplers_;
  DraftPolicy policy_;
  std::vector<Sequence*> sequences_;  // of this step
  std::vector<Sequence*> drafted_;    // in one pass
};

}  // namespace dlf::cpu
