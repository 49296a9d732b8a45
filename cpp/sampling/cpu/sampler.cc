#include "sampling/cpu/sampler.h"

#include <c10/util/Exception.h>

#include <algorithm>
#include <cmath>
#include <functional>
#include <limits>
#include <numeric>

#include "sampling/random.h"

namespace dlf {
namespace {

constexpr float kExcluded = -std::numeric_limits<float>::infinity();
constexpr int32_t kOnlyInPrompt = -1;
constexpr int64_t kMostNewTokens = int64_t{1} << 28;  // memory for each is taken at the start

// Throws if no token can be chosen from logits or scores with this peak.
void check_peak(Peak peak, const float* values, int64_t vocab, int64_t step) {
  if (peak.value > kExcluded && peak.value < -kExcluded) {
    return;
  }
  const bool broken = std::any_of(values, values + vocab, [](float value) { return !(value < -kExcluded); });
  throw SampleError(broken ? SampleFailure::broken_logits : SampleFailure::all_excluded, step);
}

}  // namespace

Sampler::Sampler(SamplingOptions options, int64_t vocab, std::span<const int64_t> prompt, int64_t max_new_tokens)
    : options_(std::move(options)), vocab_(vocab) {
  check(options_, vocab);
  TORCH_CHECK_VALUE(max_new_tokens >= 0 && max_new_tokens <= kMostNewTokens, "max_new_tokens is ", max_new_tokens,
                    ": give a count from 0 to ", kMostNewTokens);
  const bool counts =
      options_.repetition_penalty != 1 || options_.presence_penalty != 0 || options_.frequency_penalty != 0;
  const bool draws = options_.temperature > 0;
  if (counts) {
    generated_counts_.resize(vocab);
    repeated_.reserve(std::min<int64_t>(prompt.size() + max_new_tokens, vocab));
    counted_.reserve(max_new_tokens);
  }
  for (int64_t token : prompt) {
    TORCH_CHECK_VALUE(token >= 0 && token < vocab, "the prompt holds token ", token, ", but the vocabulary has ", vocab,
                      " tokens");
    if (counts && generated_counts_[token] == 0) {
      generated_counts_[token] = kOnlyInPrompt;
      repeated_.push_back(token);
    }
  }
  if (!options_.bad_words.empty()) {
    history_.reserve(prompt.size() + max_new_tokens);
    history_.assign(prompt.begin(), prompt.end());
  }
  if (options_.masked) {
    masked_.resize(vocab);
  }
  if (counts || !options_.logit_bias.empty() || !options_.bad_words.empty() || options_.min_new_tokens > 0) {
    scores_.resize(vocab);
  }
  if (draws) {
    weights_.resize(vocab);
  }
  block_sums_.resize(sampling_blocks(vocab));
  int64_t keys = std::min(vocab, 2 * options_.logprobs);
  if (draws && options_.top_k > 0 && options_.top_k < vocab) {
    keys = std::max(keys, std::min(vocab, 2 * options_.top_k));
  } else if (draws && options_.top_p < 1) {
    keys = vocab;
    bands_.resize(vocab);
  }
  keys_.resize(keys + 1);  // one more, as nucleus_end writes before it decides
  top_tokens_.resize(options_.logprobs);
  top_logprobs_.resize(options_.logprobs);
}

Sample Sampler::sample(const float* logits, int64_t step, const int32_t* mask) {
  static const auto mask_values = DLF_CPU_DISPATCH(mask_values);
  static const auto find_peak = DLF_CPU_DISPATCH(find_peak);
  static const auto exp_weights = DLF_CPU_DISPATCH(exp_weights);
  if (mask != nullptr) {
    mask_values(logits, vocab_, mask, masked_.data());
    logits = masked_.data();
  }
  Peak peak;
  find_peak(logits, vocab_, &peak);
  check_peak(peak, logits, vocab_, step);
  exp_weights(logits, vocab_, peak.value, 1.0f, nullptr, block_sums_.data());
  const double log_total = std::log(sum_blocks()) + peak.value;
  if (!std::isfinite(log_total)) {
    throw SampleError(SampleFailure::broken_logits, step);
  }

  Sample sample{0, 0, top_tokens_.data(), top_logprobs_.data(), 0};
  if (options_.logprobs > 0) {
    const std::span<RankKey> top = select_top_k({logits, static_cast<size_t>(vocab_)}, options_.logprobs, keys_);
    std::sort(top.begin(), top.end(), std::greater<>());
    for (RankKey key : top) {
      top_tokens_[sample.top_count] = token_of(key);
      top_logprobs_[sample.top_count++] = static_cast<float>(logits[token_of(key)] - log_total);
    }
  }

  const float* scores = logits;
  if (processes(step)) {
    std::copy_n(logits, vocab_, scores_.data());
    process(step);
    scores = scores_.data();
    find_peak(scores, vocab_, &peak);
    check_peak(peak, scores, vocab_, step);
  }
  sample.token = options_.temperature > 0 ? draw(scores, peak, step) : peak.index;
  sample.logprob = static_cast<float>(logits[sample.token] - log_total);
  return sample;
}

void Sampler::append(int64_t token) {
  TORCH_CHECK_VALUE(token >= 0 && token < vocab_, "token ", token, " is outside the vocabulary of ", vocab_);
  if (!options_.bad_words.empty()) {
    history_.push_back(token);
  }
  if (!generated_counts_.empty()) {
    int32_t& count = generated_counts_[token];
    counted_.emplace_back(token, count);
    if (count == 0) {
      repeated_.push_back(token);
    }
    count = std::max(count, 0) + 1;
  }
}

void Sampler::rewind(int64_t count) {
  if (!options_.bad_words.empty()) {
    history_.resize(history_.size() - count);
  }
  for (; count > 0 && !counted_.empty(); --count) {
    const auto [token, before] = counted_.back();
    counted_.pop_back();
    generated_counts_[token] = before;
    if (before == 0) {
      repeated_.pop_back();
    }
  }
}

bool Sampler::processes(int64_t step) const {
  return !repeated_.empty() || !options_.logit_bias.empty() || !options_.bad_words.empty() ||
         (step < options_.min_new_tokens && !options_.stop_token_ids.empty());
}

void Sampler::process(int64_t step) {
  penalize();
  for (const auto& [token, bias] : options_.logit_bias) {
    scores_[token] += static_cast<float>(bias);
  }
  ban_bad_words();
  if (step < options_.min_new_tokens) {
    for (int64_t token : options_.stop_token_ids) {
      scores_[token] = kExcluded;
    }
  }
}

void Sampler::penalize() {
  const float repetition = static_cast<float>(options_.repetition_penalty);
  for (int64_t token : repeated_) {
    float& score = scores_[token];
    score = score < 0 ? score * repetition : score / repetition;
    const int32_t count = generated_counts_[token];
    if (count > 0) {
      score -= static_cast<float>(options_.presence_penalty + options_.frequency_penalty * count);
    }
  }
}

void Sampler::ban_bad_words() {
  for (const std::vector<int64_t>& word : options_.bad_words) {
    const size_t preceding = word.size() - 1;
    if (preceding <= history_.size() && std::equal(word.begin(), word.end() - 1, history_.end() - preceding)) {
      scores_[word.back()] = kExcluded;
    }
  }
}

int64_t Sampler::draw(const float* scores, Peak peak, int64_t step) {
  static const auto exp_weights = DLF_CPU_DISPATCH(exp_weights);
  static const auto keep_weights = DLF_CPU_DISPATCH(keep_weights);
  // Bounded so that neither 0 * scale nor inf * scale is NaN.
  const float scale = static_cast<float>(std::clamp(1 / options_.temperature, 1e-30, 1e30));
  exp_weights(scores, vocab_, peak.value, scale, weights_.data(), block_sums_.data());
  if (options_.top_k > 0 || options_.top_p < 1 || options_.min_p > 0) {
    keep_weights(scores, vocab_, filter(scores, peak, scale), weights_.data(), block_sums_.data());
  }
  return find_weight(philox_uniform(options_.seed, static_cast<uint64_t>(step), options_.stream) * sum_blocks());
}

// Makes one rule of top-k, top-p and min-p. Each of them keeps the tokens down to some rank, so together they are one
// comparison per token.
KeepRule Sampler::filter(const float* scores, Peak peak, float scale) {
  static const auto score_bands = DLF_CPU_DISPATCH(score_bands);
  KeepRule rule{kExcluded, std::numeric_limits<int32_t>::max(), static_cast<float>(options_.min_p)};
  const std::span<const float> all{scores, static_cast<size_t>(vocab_)};
  RankKey last = 0;
  if (options_.top_k > 0 && options_.top_k < vocab_) {
    const std::span<RankKey> keys = select_top_k(all, options_.top_k, keys_);
    last = *std::min_element(keys.begin(), keys.end());
    if (options_.top_p < 1) {
      double total = 0;
      for (RankKey key : keys) {
        total += weights_[token_of(key)];
      }
      last = nucleus_end(keys, weights_.data(), options_.top_p * total);
    }
  } else if (options_.top_p < 1) {
    // 16 bands per factor of e in weight leave few tokens in each, and no weight below the last.
    score_bands(scores, vocab_, peak.value, 16 * scale, bands_.data());
    last = nucleus_end(all, bands_.data(), weights_.data(), options_.top_p * sum_blocks(), keys_);
  } else {
    return rule;
  }
  rule.score = scores[token_of(last)];
  rule.index = static_cast<int32_t>(token_of(last));
  return rule;
}

double Sampler::sum_blocks() const { return std::accumulate(block_sums_.begin(), block_sums_.end(), 0.0); }

// Inverts the cumulative weights: returns the first token, by id, at which their sum exceeds the target.
int64_t Sampler::find_weight(double target) const {
  int64_t chosen = -1;
  for (int64_t block = 0; block < sampling_blocks(vocab_); ++block) {
    if (block_sums_[block] == 0) {
      continue;
    }
    target -= chosen < 0 ? 0 : block_sums_[chosen];
    chosen = block;
    if (target < block_sums_[block]) {
      break;
    }
  }
  int64_t last = -1;  // the answer if rounding leaves the sum short of the target
  for (int64_t token = chosen * kSamplingBlock; token < std::min((chosen + 1) * kSamplingBlock, vocab_); ++token) {
    if (weights_[token] > 0) {
      last = token;
      target -= weights_[token];
      if (target < 0) {
        break;
      }
    }
  }
  return last;
}

}  // namespace dlf
