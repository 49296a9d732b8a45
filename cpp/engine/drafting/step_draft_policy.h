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

// Draft of a step, the same for all of its sequences: every kind of step is a graph of its own.
struct StepDraft {
  int64_t drafter = kAutoDrafter;  // a lane, or kPromptLookup
  int count = 0;                   // tokens of each sequence; 0: none

  auto operator<=>(const StepDraft&) const = default;
};

// Decides what a step drafts where steps are graphs. It follows DraftPolicy's rule, with few lengths to choose from,
// and with the times of whole steps, since the host sees no others. A lane that drafts nothing has no measured rate, so
// a short draft is tried now and then; prompt lookup's rate is measured by the host without drafts.
class StepDraftPolicy {
 public:
  struct Limits {
    int max_draft;     // most tokens of a sequence that a step can draft
    int max_tokens;    // most tokens of all sequences that a pass can read
    int exact_tokens;  // most tokens for which a pass is bit-identical to single-token passes; only a request that is
                       // not adaptive exceeds them
  };
  StepDraftPolicy(const FusionPlan& plan, const Limits& limits);

  // Chooses what the next step of these sequences drafts; those with Draft::limit 0 are among them. `batch`: slots that
  // it works on.
  StepDraft choose(std::span<Sequence* const> sequences, int batch);

  // Records how long a step took.
  void add_time(int batch, const StepDraft& draft, double seconds);

  // Records how many of a sequence's `drafted` tokens were accepted.
  void learn(Draft& draft, int64_t drafter, int64_t drafted, int64_t accepted);

  // Whether prompt lookup may draft a sequence, so that its rate is worth knowing.
  bool looks_up(const Sequence& sequence) const;
  // Whether a pass over `batch` slots stays exact with a drafted token of each.
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
  int steps_without_ = 0;                            // in a row, in which the wanted lane could draft but did not
};

}  // namespace dlf
