#pragma once

#include <c10/util/Exception.h>

#include <algorithm>
#include <cstdint>
#include <functional>
#include <string>
#include <vector>

#include "engine/plan.h"
#include "engine/sequence.h"

namespace dlf {

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

// What the fused distributions give the tokens of one continuation: what decoding them one by one would.
struct Score {
  std::vector<double> logprobs;  // [tokens], nats
  std::vector<bool> greedy;      // whether it is the most probable one
  std::vector<double> alpha;     // [tokens, experts of the request]
  std::vector<double> f;         // [tokens], KL(fused || large), nats
  std::vector<double> g;         // KL(large || fused)
  std::string error;             // why the tokens after these have none
};

// Whether there is a token to score: a model that gave no numbers (fusion/bad_model.h) is an error, the first of
// which stays.
bool add_failure(Score& score, int bad_model);

// Called now and then by what takes long; what it throws ends that. It may move the loop's sequences on.
using Poll = std::function<void()>;

// The one place that a loop has for what is scored: taken while this lives.
class ScoringPlace {
 public:
  explicit ScoringPlace(bool& taken) : taken_(taken) {
    TORCH_CHECK(!taken_, "the loop scores something already; score one after the other");
    taken_ = true;
  }
  ~ScoringPlace() { taken_ = false; }
  ScoringPlace(const ScoringPlace&) = delete;
  ScoringPlace& operator=(const ScoringPlace&) = delete;

 private:
  bool& taken_;
};

// Positions whose logits, of all lanes and fused, are held at a time.
int64_t score_rows(const FusionPlan& plan, const std::vector<int64_t>& vocab_sizes);

}  // namespace dlf
