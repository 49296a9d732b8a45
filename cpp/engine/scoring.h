#pragma once

#include <cstdint>
#include <functional>
#include <span>
#include <string>
#include <vector>

#include "engine/failure.h"
#include "engine/plan.h"
#include "engine/prompt.h"
#include "engine/request.h"
#include "engine/sequence.h"
#include "fusion/bad_model.h"

namespace dlf {

// What the fused distributions give the tokens of one continuation: what decoding them one by one would.
struct Score {
  std::vector<double> logprobs;  // [tokens], nats
  std::vector<bool> greedy;      // whether it is the most probable one
  std::vector<double> alpha;     // [tokens, experts of the request]
  std::vector<double> f;         // [tokens], KL(fused || large), nats
  std::vector<double> g;         // KL(large || fused)
  Failure failure;               // why the tokens after these have none
};

// Called now and then by what takes long; what it throws ends that. It may move the loop's sequences on.
using Poll = std::function<void()>;

// Fused distributions of one request, at several positions at a time, on a backend: where a Score comes from. The
// request has cache slots and memory of its own from begin() to end().
class ScoringRows {
 public:
  virtual ~ScoringRows() = default;

  // `rows` are the most positions that read() gets.
  virtual void begin(const ScoreRequest& request, int64_t rows) = 0;
  virtual void end() noexcept = 0;

  // Around each round of the prompts.
  virtual void begin_round() {}
  virtual void end_round() {}

  // Makes the rows: one, after the prompts; or one after each of these tokens, of which the first is `position` tokens
  // behind the prompts.
  virtual void use_prompts(std::span<const Lane> lanes) = 0;
  virtual void read(std::span<const Lane> lanes, std::span<const int64_t> tokens, int64_t position) = 0;

  struct Target {
    int64_t token;
    double* alpha;                // [experts of the request], to be written
    int bad_model = kNoBadModel;  // of its row; what follows is then undefined
    double logprob = 0;
    bool greedy = false;
    double f = 0;
    double g = 0;
  };
  // Fuses the rows and says what they give these tokens, one a row; or the only row all of them.
  virtual void solve(const ScoreRequest& request, std::span<Target> targets) = 0;
};

// Scores the continuations of a request whose prompts these lanes read.
std::vector<Score> score(const ScoreRequest& request, std::vector<Lane> lanes, int64_t most_rows, PromptReader& prompts,
                         ScoringRows& rows, const Poll& poll);

// Positions whose logits, of all lanes and fused, are held at a time.
int64_t score_rows(const FusionPlan& plan, const std::vector<int64_t>& vocab_sizes);

}  // namespace dlf
