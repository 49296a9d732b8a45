#pragma once

#include <compare>
#include <cstdint>
#include <map>
#include <span>
#include <utility>
#include <vector>

#include "engine/draft.h"
#include "engine/plan.h"
#include "engine/sequence.h"

namespace dlf {

// What a step drafts, for all of its sequences alike: every kind of step is a graph of its own.
struct StepDraft {
  int64_t drafter = kAutoDrafter;  // a lane, or kPromptLookup
  int count = 0;                   // tokens of each sequence; 0: none

  auto operator<=>(const StepDraft&) const = default;
};

// Decides what a step drafts where steps are graphs: DraftPolicy's rule with few lengths to choose from, and with
// the times of whole steps, as the host sees nothing else. A lane that drafts nothing teaches nothing, so that now and
// then a short draft is tried; what prompt lookup would have said the host finds out by itself.
class StepDraftPolicy {
 public:
  struct Limits {
    int max_draft;     // tokens of one sequence that a step can draft
    int max_tokens;    // of all sequences that a pass can read
    int exact_tokens;  // up to here a pass gives to the bit what passes over single tokens give: unless a request
                       // insists, it is not made longer
  };
  StepDraftPolicy(const FusionPlan& plan, const Limits& limits);

  // What the next step of these sequences drafts, those of Draft::limit 0 included. `batch`: slots that it works on.
  StepDraft choose(std::span<Sequence* const> sequences, int batch);

  // How long a step took.
  void add_time(int batch, const StepDraft& draft, double seconds);

  // What became of `drafted` tokens of a sequence.
  void learn(Draft& draft, int64_t drafter, int64_t drafted, int64_t accepted);

  // Whether prompt lookup may draft a sequence, so that its rate is worth knowing.
  bool looks_up(const Sequence& sequence) const;
  // Whether a pass over so many slots can have a drafted token of each without ceasing to be exact.
  bool has_room(int batch) const { return 2 * batch <= limits_.exact_tokens; }

 private:
  // A running mean.
  struct Time {
    double seconds = 0;
    int count = 0;

    void add(double sample);
  };

  int64_t drafter_of(const Sequence& sequence) const;
  int64_t drafter_of_most(std::span<Sequence* const> sequences) const;
  bool drafts(int64_t drafter, const Sequence& sequence) const;
  double tokens(std::span<Sequence* const> sequences, const StepDraft& draft) const;
  double seconds(int batch, const StepDraft& draft) const;
  double token_seconds(int batch, int64_t drafter, double plain) const;

  const FusionPlan& plan_;
  Limits limits_;
  DraftRates rates_;
  std::map<std::pair<int, StepDraft>, Time> times_;  // by batch
  int steps_without_ = 0;  // in a row, in which the lane that is wanted could have drafted and did not
};

}  // namespace dlf
