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

// Score of a continuation: for each token, the figures of the fused distribution that decoding would draw it from.
struct Score {
  std::vector<double> logprobs;  // [tokens], nats
  std::vector<bool> greedy;      // whether the token is the most probable one
  std::vector<double> alpha;     // [tokens, experts of the request]
  std::vector<double> f;         // [tokens], KL(fused || large), nats
  std::vector<double> g;         // KL(large || fused)
  Failure failure;               // why the further tokens have no score
};

// Called now and then during long work; an exception ends that work. It may step the loop.
using Poll = std::function<void()>;

// Computes fused distributions of one request, at several positions at a time, on a backend. From begin() to end() the
// request has cache slots and memory of its own.
class ScoringRows {
 public:
  virtual ~ScoringRows() = default;

  // `rows`: most positions of a read().
  virtual void begin(const ScoreRequest& request, int64_t rows) = 0;
  virtual void end() noexcept = 0;

  // Called before and after each round of the prompts.
  virtual void begin_round() {}
  virtual void end_round() {}

  // Make the rows to solve: one, after the prompts; or one after each of `tokens`, the first of which stands `position`
  // tokens behind the prompts.
  virtual void use_prompts(std::span<const Lane> lanes) = 0;
  virtual void read(std::span<const Lane> lanes, std::span<const int64_t> tokens, int64_t position) = 0;

  struct Target {
    int64_t token;
    double* alpha;                // [experts of the request], output
    int bad_model = kNoBadModel;  // of its row; after a bad one, the fields below are undefined
    double logprob = 0;
    bool greedy = false;
    double f = 0;
    double g = 0;
  };
  // Fuses the rows and fills in the targets: one for each row, or all from the only row. `step` tokens of the
  // continuation stand before the first row.
  virtual void solve(const ScoreRequest& request, int64_t step, std::span<Target> targets) = 0;
};

// Scores the continuations of a request, whose prompts `lanes` read; they have room for all of it.
std::vector<Score> score(const ScoreRequest& request, std::vector<Lane>& lanes, int64_t most_rows,
                         PromptReader& prompts, ScoringRows& rows, const Poll& poll);

// Most positions whose logits, of all lanes and fused, are held at a time.
int64_t score_rows(const FusionPlan& plan, const std::vector<int64_t>& vocab_sizes);

}  // namespace dlf
