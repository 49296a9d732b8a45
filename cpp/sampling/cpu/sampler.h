#pragma once

#include <c10/util/Exception.h>

#include <cstdint>
#include <span>
#include <utility>
#include <vector>

#include "sampling/cpu/selection.h"
#include "sampling/cpu/sweep.h"
#include "sampling/failure.h"
#include "sampling/options.h"

namespace dlf {

struct Sample {
  int64_t token;
  float logprob;              // log-probabilities are those of the raw logits, before any option
  const int64_t* top_tokens;  // the most probable first, valid until the next sample()
  const float* top_logprobs;
  int64_t top_count;  // below options.logprobs if fewer tokens have logits above -inf
};

// ValueError for a step at which no token can be chosen.
class SampleError : public c10::ValueError {
 public:
  SampleError(SampleFailure failure, int64_t step)
      : c10::ValueError({__func__, __FILE__, __LINE__}, describe(failure, step)), failure_(failure) {}

  SampleFailure failure() const { return failure_; }

 private:
  SampleFailure failure_;
};

// Chooses the tokens of one sequence. The constructor takes all memory.
class Sampler {
 public:
  // Throws a ValueError for invalid options, and for prompt tokens outside the vocabulary.
  Sampler(SamplingOptions options, int64_t vocab, std::span<const int64_t> prompt, int64_t max_new_tokens);

  // Chooses a token by logits[vocab], which may hold -inf to exclude tokens; a mask, which only a sequence that is
  // `masked` may have, sets further ones to -inf. `step` counts the generated tokens and is the random counter. Throws
  // a SampleError when every token is excluded or a logit is NaN or +inf.
  Sample sample(const float* logits, int64_t step, const int32_t* mask = nullptr);

  // Record a chosen token, and forget the last `count` of them.
  void append(int64_t token);
  void rewind(int64_t count);

 private:
  bool processes(int64_t step) const;
  void process(int64_t step);
  void penalize();
  void ban_bad_words();
  int64_t draw(const float* scores, Peak peak, int64_t step);
  KeepRule filter(const float* scores, Peak peak, float scale);
  double sum_blocks() const;
  int64_t find_weight(double target) const;

  SamplingOptions options_;
  int64_t vocab_;
  std::vector<int64_t> history_;           // prompt and generated tokens
  std::vector<int64_t> repeated_;          // the tokens of history_, each once
  std::vector<int32_t> generated_counts_;  // per token; negative if it is only in the prompt and 0 if nowhere
  std::vector<std::pair<int64_t, int32_t>> counted_;  // generated tokens and the counts they had before
  std::vector<float> masked_;                         // logits after the mask
  std::vector<float> scores_;                         // logits after penalties, biases and bans
  std::vector<float> weights_;                        // exponentials of the scores
  std::vector<double> block_sums_;                    // of weights_
  std::vector<uint16_t> bands_;                       // of scores_, for top-p
  std::vector<RankKey> keys_;
  std::vector<int64_t> top_tokens_;
  std::vector<float> top_logprobs_;
};

}  // namespace dlf
