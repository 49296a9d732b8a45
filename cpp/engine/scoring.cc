#include "engine/scoring.h"

#include <algorithm>

namespace dlf {
namespace {

constexpr int64_t kScoreBytes = 128 << 20;
constexpr int64_t kMostRows = 256;  // of a matrix product: more are not faster

// Calls begin(), and end() however scoring ends.
class Begun {
 public:
  Begun(ScoringRows& rows, const ScoreRequest& request, int64_t most_rows) : rows_(rows) {
    try {
      rows.begin(request, most_rows);
    } catch (...) {
      rows.end();
      throw;
    }
  }
  ~Begun() { rows_.end(); }
  Begun(const Begun&) = delete;
  Begun& operator=(const Begun&) = delete;

 private:
  ScoringRows& rows_;
};

// Reads the prompts. The last logits of all lanes are valid until the next poll, which may step.
void read_prompts(std::vector<Lane>& lanes, PromptReader& prompts, ScoringRows& rows, const Poll& poll) {
  const Reading reading = {lanes};
  for (bool done = false; !done;) {
    rows.begin_round();
    prompts.begin();
    prompts.restore(reading);
    done = prompts.read(reading, prompts.most_rounds());
    prompts.end();
    rows.end_round();
    if (!done) {
      poll();
    }
  }
  prompts.settle(lanes);
}

// Solves the rows for these tokens, and adds each result to a score of its own, or all to the only score. The first
// failure of a score stays.
void add(ScoringRows& rows, const ScoreRequest& request, int64_t step, std::span<const int64_t> tokens,
         std::span<Score> scores) {
  const size_t experts = request.experts.size();
  std::vector<double> alpha(tokens.size() * experts);
  std::vector<ScoringRows::Target> targets;
  targets.reserve(tokens.size());
  for (size_t i = 0; i < tokens.size(); ++i) {
    targets.push_back({tokens[i], alpha.data() + i * experts});
  }
  rows.solve(request, step, targets);
  for (size_t i = 0; i < targets.size(); ++i) {
    Score& score = scores[scores.size() == 1 ? 0 : i];
    const ScoringRows::Target& target = targets[i];
    if (score.failure) {
      continue;
    }
    if (target.bad_model != kNoBadModel) {
      score.failure =
          row_failure(target.bad_model, "token " + std::to_string(score.logprobs.size()) + " of the continuation");
      continue;
    }
    score.logprobs.push_back(target.logprob);
    score.greedy.push_back(target.greedy);
    score.f.push_back(target.f);
    score.g.push_back(target.g);
    score.alpha.insert(score.alpha.end(), target.alpha, target.alpha + experts);
  }
}

}  // namespace

std::vector<Score> score(const ScoreRequest& request, std::vector<Lane>& lanes, int64_t most_rows,
                         PromptReader& prompts, ScoringRows& rows, const Poll& poll) {
  const Begun begun(rows, request, most_rows);
  read_prompts(lanes, prompts, rows, poll);

  // The first tokens of all continuations share one distribution.
  std::vector<Score> scores(request.continuations.size());
  std::vector<int64_t> first;
  first.reserve(scores.size());
  for (const std::vector<int64_t>& tokens : request.continuations) {
    first.push_back(tokens[0]);
  }
  rows.use_prompts(lanes);
  add(rows, request, 0, first, scores);
  // A continuation overwrites the one before it in the caches. Its last token need not be read.
  for (size_t i = 0; i < scores.size(); ++i) {
    const std::span tokens(request.continuations[i]);
    const auto size = static_cast<int64_t>(tokens.size());
    for (int64_t begin = 1; begin < size && !scores[i].failure; begin += most_rows) {
      const int64_t count = std::min(most_rows, size - begin);
      poll();
      rows.read(lanes, tokens.subspan(begin - 1, count), begin - 1);
      add(rows, request, begin, tokens.subspan(begin, count), std::span(&scores[i], 1));
    }
  }
  return scores;
}

int64_t score_rows(const FusionPlan& plan, const std::vector<int64_t>& vocab_sizes) {
  int64_t logits = plan.vocab;  // fused
  for (const int64_t model : plan.lane_model) {
    logits += vocab_sizes[model];
  }
  return std::clamp<int64_t>(kScoreBytes / (logits * static_cast<int64_t>(sizeof(float))), 1, kMostRows);
}

}  // namespace dlf
