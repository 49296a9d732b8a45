#pragma once

#include <algorithm>
#include <cstdint>
#include <vector>

#include "engine/failure.h"
#include "engine/hook.h"
#include "engine/plan.h"
#include "fusion/rule.h"
#include "sampling/options.h"

namespace dlf {

// Tokens that a lane reads before it decodes.
struct Prompt {
  std::vector<int64_t> tokens;
  // Positions, rising, after which other prompts may differ, such as the end of the examples that all requests share. A
  // chunk ends at each, so that those prompts find it in the prefix cache.
  std::vector<int64_t> breaks;

  int64_t size() const { return static_cast<int64_t>(tokens.size()); }

  // Returns the end of the chunk that begins at `begin`, of at most `most` tokens. It depends on the prompt alone,
  // because the sums of a matrix product may depend on its rows.
  int64_t chunk_end(int64_t begin, int64_t most) const;
  int64_t chunks_from(int64_t begin, int64_t most) const;
};

inline constexpr int64_t kMaxDraft = 16;      // most drafted tokens of one sequence in a step
inline constexpr int64_t kMaxDraftRows = 32;  // most drafted tokens of all sequences in a step

// Values of a drafter that are no lane.
inline constexpr int64_t kAutoDrafter = -1;   // the plan's drafter, or else the expert with the most weight lately
inline constexpr int64_t kPromptLookup = -2;  // PromptLookup

// Speculative decoding of a sequence: a fast drafter proposes tokens, and one pass of every model verifies all of them
// (Leviathan et al., arXiv 2211.17192).
struct Speculation {
  int64_t max_draft = 0;           // most tokens drafted in a step; 0: plain decoding
  int64_t drafter = kAutoDrafter;  // a lane, or one of the above
  bool adaptive = true;            // draft fewer, or none, if that is expected to be faster
};

struct Request {
  int64_t id = 0;
  std::vector<Prompt> prompts;  // one for each lane of the plan; empty if no chosen expert needs it
  std::vector<int> experts;     // which of the plan's experts are fused, in rising order
  Rule rule;                    // how they are fused
  SamplingOptions sampling;
  int64_t max_new_tokens = 0;
  Speculation speculation;
  bool hook = false;     // whether the hook is called for it
  bool trace = false;    // whether outputs say what the large model alone would have chosen
  int64_t priority = 0;  // the lower, the earlier; those of one priority come in turn
};

// Prompts, and continuations to score. The prompts are read once for all of them.
struct ScoreRequest {
  std::vector<Prompt> prompts;  // as in a Request
  std::vector<int> experts;
  Rule rule;
  std::vector<std::vector<int64_t>> continuations;
  CallHook hook = {};  // sees the logits of every position; may be empty

  int64_t longest() const {
    size_t most = 0;
    for (const std::vector<int64_t>& tokens : continuations) {
      most = std::max(most, tokens.size());
    }
    return static_cast<int64_t>(most);
  }
};

enum class FinishReason { none, stop, length, error };

// A token that a step gave a sequence. It belongs to the sequence and is valid until the next step.
struct StepOutput {
  int64_t request = 0;
  int64_t token = -1;
  float logprob = 0;
  std::vector<int64_t> top_tokens;
  std::vector<float> top_logprobs;
  std::vector<double> alpha;  // of the request's experts
  double f = 0;               // KL(fused || large), nats
  double g = 0;               // KL(large || fused)
  int64_t own_token = -1;     // with Request::trace: what the large model alone draws with the same random number
  int64_t drafted = 0;        // tokens that this step drafted; -1 on all but its first token
  int64_t cached_tokens = 0;  // prompt tokens, of all lanes, that the prefix cache had
  FinishReason finish = FinishReason::none;
  Failure failure;
};

// Throw a ValueError or IndexError for a request that no step loop with this plan can run.
void check_request(const Request& request, const FusionPlan& plan, const std::vector<int64_t>& vocab_sizes,
                   int64_t max_context);
void check_score(const ScoreRequest& request, const FusionPlan& plan, const std::vector<int64_t>& vocab_sizes,
                 int64_t max_context);

}  // namespace dlf
