#pragma once

#include <cstdint>
#include <utility>
#include <vector>

namespace dlf {

// Bounds of numbers that meet logits in float32: within them, plausible logits stay finite.
inline constexpr double kMostPenalty = 1e6;
inline constexpr double kMostBias = 3.4e38;

// How the next token is chosen. The fields apply in this order.
struct SamplingOptions {
  bool masked = false;            // whether a mask says which tokens may be chosen (mask.h)
  double repetition_penalty = 1;  // of prompt and generated tokens: divides positive logits, multiplies negative ones
  double presence_penalty = 0;    // subtracted once from every generated token
  double frequency_penalty = 0;   // subtracted once for each time that the token was generated
  std::vector<std::pair<int64_t, double>> logit_bias;  // -inf excludes a token
  std::vector<std::vector<int64_t>> bad_words;
  std::vector<int64_t> stop_token_ids;  // end-of-sequence tokens included; suppressed before step min_new_tokens
  int64_t min_new_tokens = 0;
  double temperature = 0;  // 0: greedy; of the fields below only logprobs matters then
  int64_t top_k = 0;       // 0: off
  double top_p = 1;
  double min_p = 0;
  uint64_t seed = 0;
  uint64_t stream = 0;   // tells apart sequences that share a seed
  int64_t logprobs = 0;  // how many of the most probable tokens to report
};

// Throws a ValueError that names the option, its value and the remedy.
void check(const SamplingOptions& options, int64_t vocab);

}  // namespace dlf
