#pragma once

#include <algorithm>
#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "engine/draft.h"
#include "engine/plan.h"
#include "engine/request.h"

namespace dlf {

// One context running on a model: where its keys and values are, and how far it has come.
struct Lane {
  Prompt prompt;
  int64_t cache_slot = -1;  // in its model's cache
  int64_t length = 0;       // positions in the cache that the host knows of
  int64_t chunk = 0;        // of the prefix cache: the last one read

  bool used() const { return prompt.size() > 0; }
};

// One request while it runs.
struct Sequence {
  int64_t request = 0;
  int64_t slot = -1;         // its place in the batch; -1: it waits
  std::vector<Lane> lanes;   // of the plan; not all need be used
  std::vector<int> experts;  // of the plan
  Rule rule;
  SamplingOptions sampling;
  int64_t limit = 0;            // new tokens after which it ends: as many as were wanted, or as the context holds
  int64_t draft_limit = 0;      // new tokens after which the drafter's context is full, too
  std::vector<int64_t> tokens;  // the large model's prompt, the new tokens and, in a step, those that are drafted
  int64_t new_tokens = 0;
  int64_t cached_tokens = 0;  // of its prompts: those that the prefix cache had
  Draft draft;
  std::vector<StepOutput> outputs;  // of this step: one more than are drafted at most
  FinishReason finish = FinishReason::none;

  int64_t prompt_size() const { return lanes[0].prompt.size(); }
  bool finished() const { return finish != FinishReason::none; }
  bool stops_at(int64_t token) const {
    const std::vector<int64_t>& stops = sampling.stop_token_ids;
    return std::find(stops.begin(), stops.end(), token) != stops.end();
  }

  // The tokens that a lane has not read yet: the last one, and those that are drafted.
  std::span<const int64_t> unread(const Lane& lane) const {
    return std::span(tokens).subspan(prompt_size() + lane.length - lane.prompt.size());
  }
  // Tokens that may be drafted: they and the one after them must be wanted, and have places in every cache.
  int64_t draft_room() const { return std::min(draft.options.max_draft, draft_limit - new_tokens - 1); }

  // The output of the next token that this step gives, of which it has given `given` already.
  StepOutput& next_output(int64_t given, int64_t drafted);
  // Appends the output's token and says whether it was drafted. It may be the last one: see finished().
  bool append(StepOutput& output);
  void fail(StepOutput& output, Failure failure);
};

std::unique_ptr<Sequence> make_sequence(Request request, const FusionPlan& plan, int64_t max_context);

// Lanes of the sequence in a slot, which read these prompts.
std::vector<Lane> make_lanes(std::vector<Prompt> prompts);
void occupy(std::vector<Lane>& lanes, int64_t slot, const FusionPlan& plan);

}  // namespace dlf
