#pragma once

#include <algorithm>
#include <cstdint>
#include <vector>

#include "engine/failure.h"
#include "engine/plan.h"
#include "fusion/rule.h"
#include "sampling/options.h"

namespace dlf {

// What a lane reads before it decodes.
struct Prompt {
  std::vector<int64_t> tokens;
  // Where prompts may go on differently, in rising order: the end of the examples that all requests share. Others read
  // up to there what this one has read.
  std::vector<int64_t> breaks;

  int64_t size() const { return static_cast<int64_t>(tokens.size()); }

  // Prompts are read in chunks. Their ends depend on the prompt alone, because the sums of a matrix product may depend
  // on its rows: the end of the chunk that begins here, of at most `most` tokens.
  int64_t chunk_end(int64_t begin, int64_t most) const;
  int64_t chunks_from(int64_t begin, int64_t most) const;
};

inline constexpr int64_t kMaxDraft = 16;      // tokens that one sequence may be drafted ahead
inline constexpr int64_t kMaxDraftRows = 32;  // drafted tokens of all sequences of one step together

// In place of a drafter's lane.
inline constexpr int64_t kAutoDrafter = -1;   // the plan's drafter, or the expert with the most weight lately
inline constexpr int64_t kPromptLookup = -2;  // what followed the last tokens when they came before

// Whether tokens of a sequence are drafted by something fast, and then verified by one pass of every model over all of
// them (speculative decoding, Leviathan et al., arXiv 2211.17192).
struct Speculation {
  int64_t max_draft = 0;           // tokens drafted before a pass at most; 0: plain decoding
  int64_t drafter = kAutoDrafter;  // a lane, or one of the above
  bool adaptive = true;            // draft fewer, or none, where that is expected to be faster
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

// A request's prompts, and ways in which they may go on. The prompts are read once for all of them.
struct ScoreRequest {
  std::vector<Prompt> prompts;  // as in a Request
  std::vector<int> experts;
  Rule rule;
  std::vector<std::vector<int64_t>> continuations;

  int64_t longest() const {
    size_t most = 0;
    for (const std::vector<int64_t>& tokens : continuations) {
      most = std::max(most, tokens.size());
    }
    return static_cast<int64_t>(most);
  }
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
  Failure failure;
};

// Throw a ValueError or IndexError for what no step loop with this plan can run.
void check_request(const Request& request, const FusionPlan& plan, const std::vector<int64_t>& vocab_sizes,
                   int64_t max_context);
void check_score(const ScoreRequest& request, const FusionPlan& plan, const std::vector<int64_t>& vocab_sizes,
                 int64_t max_context);

}  // namespace dlf
