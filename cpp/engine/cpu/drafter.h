#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <vector>

#include "engine/cpu/masks.h"
#include "engine/cpu/model.h"
#include "engine/drafting/draft_policy.h"
#include "engine/sequence.h"
#include "sampling/cpu/sampler.h"

namespace dlf::cpu {

using Samplers = std::vector<std::unique_ptr<Sampler>>;  // by slot; null where none decodes

// Drafts the next tokens of sequences, one pass of their drafters a token, before a step verifies them. The sequence's
// own sampler draws a draft from the drafter's logits, with the mask and the random number that will draw from the
// fused ones. A draft is accepted if both draws agree, so accepted tokens are those that come without drafts.
class Drafter {
 public:
  Drafter(const FusionPlan& plan, std::vector<Model>& models, const Samplers& samplers, Masks& masks,
          int64_t max_batch);

  // Adds drafts to the tokens of the sequences that have new tokens. Allocates nothing.
  void draft(std::span<Sequence* const> sequences);

  // Token that a drafter gave, or would give, for one position.
  struct Guess {
    int64_t drafter = kAutoDrafter;
    int64_t token = -1;
    int bin = 0;
  };
  struct Guesses {
    Guess by_lane, by_lookup;
  };
  // Guesses a sequence's next token, `position` tokens after the step's first one.
  Guesses guess(Sequence& sequence, int64_t position) const;
  // Learns from the token that was chosen, and from its weights α.
  void learn(Sequence& sequence, const Guesses& guesses, const StepOutput& output);

 private:
  void look_up(Sequence& sequence) const;
  bool pass();
  void catch_up(const Sequence& sequence, Lane& lane);
  Sampler& sampler(const Sequence& sequence) const { return *samplers_[sequence.slot]; }
  std::optional<Sample> sample(const Sequence& sequence, const float* logits, int64_t step, int64_t position) const;
  void take(Sequence& sequence) const;
  void add(Sequence& sequence, int64_t token, int bin) const;

  const FusionPlan& plan_;
  std::vector<Model>& models_;
  const Samplers& samplers_;
  Masks& masks_;
  DraftPolicy policy_;
  std::vector<Sequence*> sequences_;  // of this step
  std::vector<Sequence*> drafted_;    // in this pass
};

}  // namespace dlf::cpu
