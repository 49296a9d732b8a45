#pragma once

#include <algorithm>
#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "engine/drafting/draft.h"
#include "fusion/rule.h"
#include "sampling/cpu/sampler.h"

namespace dlf {

// What a lane reads before it decodes.
struct Prompt {
  std::vector<int64_t> tokens;
  // Where prompts may go on differently, in rising order: the end of the examples that all requests share. Others read
  // up to there what this one has read.
  std::vector<int64_t> breaks;

  // Prompts are read in pieces. Where they end depends on the prompt alone, because the sums of a matrix product may
  // depend on its rows: the end of the piece that begins here, of at most `most` tokens.
  int64_t piece_end(int64_t begin, int64_t most) const;
  int64_t pieces_from(int64_t begin, int64_t most) const;
};

struct Request {
  int64_t id = 0;
  std::vector<Prompt> prompts;  // one for each lane of the plan; empty where no chosen expert needs it
  std::vector<int> experts;     // which of the plan's experts are fused, in rising order
  Rule rule;                    // and how
  SamplingOptions sampling;
  int64_t max_new_tokens = 0;
  Speculation speculation;
};

// One context running on a model: where its keys and values are, and how far it has come.
struct Lane {
  Prompt prompt;
  int64_t slot = -1;
  int64_t length = 0;  // positions in the cache
  int64_t piece = 0;   // of the prefix cache: the last one read
  // Of this step, [vocab] each: after the last token, then after each that was drafted.
  std::vector<const float*> logits;

  bool used() const { return !prompt.tokens.empty(); }
};

enum class FinishReason { none, stop, length, error };

// A token that a step gave one sequence. Arrays belong to the sequence and hold until the next step.
struct StepOutput {
  int64_t request = 0;
  int64_t token = -1;
  float logprob = 0;
  std::vector<int64_t> top_tokens;
  std::vector<float> top_logprobs;
  std::vector<double> alpha;  // of the request's experts
  double f = 0;               // KL(fused || large), nats
  double g = 0;               // KL(large || fused)
  int64_t drafted = 0;        // tokens that this step had drafted; -1 if this is not the first token it gave
  int64_t cached_tokens = 0;  // of the prompts of all lanes: those that the prefix cache had
  FinishReason finish = FinishReason::none;
  std::string error;
};

// One request while it runs.
struct Sequence {
  int64_t request = 0;
  std::vector<Lane> lanes;   // of the plan; not all need be used
  std::vector<int> experts;  // of the plan
  Rule rule;
  std::unique_ptr<Sampler> sampler;
  std::vector<int64_t> stop_token_ids;
  int64_t max_new_tokens = 0;
  std::vector<int64_t> text;  // the large model's prompt, the new tokens, and in a step those that are drafted
  int64_t new_tokens = 0;
  bool prefilled = false;
  Draft draft;
  std::vector<StepOutput> outputs;  // of this step: one more than are drafted at most
  FinishReason finish = FinishReason::none;

  int64_t prompt_size() const { return static_cast<int64_t>(lanes[0].prompt.tokens.size()); }
  bool stops_at(int64_t token) const {
    return std::find(stop_token_ids.begin(), stop_token_ids.end(), token) != stop_token_ids.end();
  }

  // The tokens that a lane has not read yet: the last one, and those that are drafted.
  std::span<const int64_t> unread(const Lane& lane) const {
    const auto read = lane.length - static_cast<int64_t>(lane.prompt.tokens.size());
    return std::span(text).subspan(prompt_size() + read);
  }
};

}  // namespace dlf
