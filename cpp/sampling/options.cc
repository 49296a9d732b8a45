#include "sampling/options.h"

#include <c10/util/Exception.h>

#include <cmath>

#include "support/option_error.h"

namespace dlf {
namespace {

void check_token(const char* option, int64_t token, int64_t vocab) {
  check_option(token >= 0 && token < vocab, option, " names token ", token, ", but the vocabulary has ", vocab,
               " tokens: use ids from 0 to ", vocab - 1);
}

void check_penalty(const char* option, double penalty) {
  check_option(std::abs(penalty) <= kMostPenalty, option, " is ", penalty, ": give a number from ", -kMostPenalty,
               " to ", kMostPenalty, " (0 turns it off)");
}

}  // namespace

void check(const SamplingOptions& options, int64_t vocab) {
  TORCH_CHECK_VALUE(vocab > 0 && vocab <= INT32_MAX, "a vocabulary of ", vocab, " tokens cannot be sampled from");
  check_option(options.temperature >= 0 && std::isfinite(options.temperature), "temperature", " is ",
               options.temperature, ": give a finite number >= 0 (0 is greedy)");
  check_option(options.top_k >= 0, "top_k", " is ", options.top_k, ": give a count >= 0 (0 turns it off)");
  check_option(options.top_p > 0 && options.top_p <= 1, "top_p", " is ", options.top_p,
               ": give a probability above 0 and up to 1 (1 turns it off)");
  check_option(options.min_p >= 0 && options.min_p <= 1, "min_p", " is ", options.min_p,
               ": give a probability from 0 to 1 (0 turns it off)");
  check_option(options.repetition_penalty >= 1 / kMostPenalty && options.repetition_penalty <= kMostPenalty,
               "repetition_penalty", " is ", options.repetition_penalty, ": give a number from ", 1 / kMostPenalty,
               " to ", kMostPenalty, " (1 turns it off, above 1 discourages repetition)");
  check_penalty("presence_penalty", options.presence_penalty);
  check_penalty("frequency_penalty", options.frequency_penalty);
  check_option(options.min_new_tokens >= 0, "min_new_tokens", " is ", options.min_new_tokens, ": give a count >= 0");
  check_option(options.logprobs >= 0 && options.logprobs <= vocab, "logprobs", " is ", options.logprobs,
               ": give a count from 0 to the ", vocab, " tokens of the vocabulary");
  for (const auto& [token, bias] : options.logit_bias) {
    check_token("logit_bias", token, vocab);
    check_option(std::abs(bias) <= kMostBias || bias == -HUGE_VAL, "logit_bias", " of token ", token, " is ", bias,
                 ": give a number from ", -kMostBias, " to ", kMostBias, ", or -inf to exclude the token");
  }
  for (const std::vector<int64_t>& word : options.bad_words) {
    check_option(!word.empty(), "bad_words", " holds an empty word: give each word at least one token");
    for (int64_t token : word) {
      check_token("bad_words", token, vocab);
    }
  }
  for (int64_t token : options.stop_token_ids) {
    check_token("stop_token_ids", token, vocab);
  }
}

}  // namespace dlf
