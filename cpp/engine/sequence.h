#pragma once

#include <algorithm>
#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "engine/draft.h"
#include "engine/plan.h"
#include "engine/request.h"

namespace dlf {

// One context running on a model: its prompt, its cache slot and how far it has come.
struct Lane {
  Prompt prompt;
  int64_t cache_slot = -1;  // in its model's cache
  int64_t length = 0;       // positions in the cache that the host knows of
  int64_t most = 0;         // positions that it may come to
  int64_t chunk = 0;        // PrefixChunk::id of the last chunk read

  bool used() const { return prompt.size() > 0; }
};

// What the lanes of a request have to read: their prompts, then `chosen` tokens if it was put back after they were
// chosen.
struct Reading {
  std::vector<Lane>& lanes;
  std::span<const int64_t> chosen = {};
  int64_t* cached_tokens = nullptr;  // counts tokens that the prefix cache has
};

// One request while it runs.
struct Sequence {
  int64_t request = 0;
  int64_t slot = -1;         // its place in the batch; -1: it waits
  int64_t priority = 0;      // the lower, the earlier
  int64_t arrival = 0;       // counts the requests
  std::vector<Lane> lanes;   // one for each of the plan's; some may be unused
  std::vector<int> experts;  // of the plan
  Rule rule;
  SamplingOptions sampling;
  bool hook = false;
  bool trace = false;
  int64_t limit = 0;            // most new tokens: as many as were asked for, or as the context holds
  int64_t draft_limit = 0;      // new tokens up to which it drafts: the drafter's context counts, too
  std::vector<int64_t> tokens;  // the large model's prompt, the new tokens and, in a step, those that are drafted
  int64_t new_tokens = 0;
  int64_t masked_tokens = 0;  // new tokens that its masks have followed
  int64_t cached_tokens = 0;  // prompt tokens, of all lanes, that the prefix cache had
  Draft draft;
  std::vector<StepOutput> outputs;  // of this step: one more than it may draft
  FinishReason finish = FinishReason::none;

  int64_t prompt_size() const { return lanes[0].prompt.size(); }
  bool finished() const { return finish != FinishReason::none; }
  bool stops_at(int64_t token) const {
    const std::vector<int64_t>& stops = sampling.stop_token_ids;
    return std::find(stops.begin(), stops.end(), token) != stops.end();
  }

  // How late it has its turn: less than another's if it goes first.
  std::pair<int64_t, int64_t> turn() const { return {priority, arrival}; }
  // What it has to read. Tokens of its prompts that the prefix cache has are counted once.
  Reading reading() { return {lanes, chosen(), new_tokens == 0 ? &cached_tokens : nullptr}; }
  // Its new tokens, without those that are drafted.
  std::span<const int64_t> chosen() const { return std::span(tokens).subspan(prompt_size(), new_tokens); }
  // Positions of a lane when `ahead` more tokens are chosen.
  int64_t positions(const Lane& lane, int64_t ahead) const {
    return std::min(lane.prompt.size() + new_tokens + ahead, lane.most);
  }

  // The tokens that a lane has not read yet: the last one, and those that are drafted.
  std::span<const int64_t> unread(const Lane& lane) const {
    return std::span(tokens).subspan(prompt_size() + lane.length - lane.prompt.size());
  }
  // New tokens that no mask has followed yet.
  std::span<const int64_t> unmasked() const {
    return std::span(tokens).subspan(prompt_size() + masked_tokens, new_tokens - masked_tokens);
  }
  // Most tokens that may be drafted: they and the token after them must be wanted and fit every cache.
  int64_t draft_room() const { return std::min(draft.options.max_draft, draft_limit - new_tokens - 1); }

  // Returns the output of this step's next token, after `given` tokens.
  StepOutput& next_output(int64_t given, int64_t drafted);
  // Appends the output's token; returns whether it was drafted. The sequence may be finished() then.
  bool append(StepOutput& output);
  void fail(StepOutput& output, Failure failure);
};

std::unique_ptr<Sequence> make_sequence(Request request, const FusionPlan& plan, int64_t max_context);

// Lanes that read these prompts and up to `more` tokens, and their cache slots for the sequence in `slot`.
std::vector<Lane> make_lanes(std::vector<Prompt> prompts, int64_t more, int64_t max_context);
void occupy(std::vector<Lane>& lanes, int64_t slot, const FusionPlan& plan);

}  // namespace dlf
