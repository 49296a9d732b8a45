#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/from_blob.h>
#include <ATen/ops/full.h>
#include <ATen/ops/ones.h>
#include <ATen/ops/stack.h>

#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <cstring>
#include <limits>
#include <memory>
#include <numeric>
#include <random>
#include <vector>

#include "check.h"
#include "cuda_testing.h"
#include "sampling/cpu/sampler.h"
#include "sampling/cuda/sampler_state.h"
#include "sampling/mask.h"
#include "sampling/random.h"
#include "support/cuda/runtime.h"
#if __has_include("emulator.h")
#include "emulator.h"
#endif

namespace dlf {
namespace {

constexpr float kInfinity = std::numeric_limits<float>::infinity();
constexpr int64_t kMaxTokens = 256;
constexpr int kTop = 20;

using Floats = std::vector<float>;
using Tokens = std::vector<int64_t>;

// ---- the reference, in double precision

// Returns the logits after all options except the temperature and the filters.
Floats process(Floats scores, const SamplingOptions& options, const Tokens& prompt, const Tokens& generated) {
  Tokens history = prompt;
  history.insert(history.end(), generated.begin(), generated.end());
  for (int64_t token = 0; token < static_cast<int64_t>(scores.size()); ++token) {
    const auto count = std::count(generated.begin(), generated.end(), token);
    if (count > 0 || std::count(prompt.begin(), prompt.end(), token) > 0) {
      const float repetition = static_cast<float>(options.repetition_penalty);
      scores[token] = scores[token] < 0 ? scores[token] * repetition : scores[token] / repetition;
    }
    if (count > 0) {
      scores[token] -= static_cast<float>(options.presence_penalty + options.frequency_penalty * count);
    }
  }
  for (const auto& [token, bias] : options.logit_bias) {
    scores[token] += static_cast<float>(bias);
  }
  for (const Tokens& word : options.bad_words) {
    if (word.size() <= history.size() + 1 && std::equal(word.rbegin() + 1, word.rend(), history.rbegin())) {
      scores[word.back()] = -kInfinity;
    }
  }
  if (static_cast<int64_t>(generated.size()) < options.min_new_tokens) {
    for (int64_t token : options.stop_token_ids) {
      scores[token] = -kInfinity;
    }
  }
  return scores;
}

std::vector<double> probabilities(const Floats& scores, const SamplingOptions& options) {
  const size_t vocab = scores.size();
  Tokens ranked(vocab);
  std::iota(ranked.begin(), ranked.end(), 0);
  std::stable_sort(ranked.begin(), ranked.end(), [&](int64_t a, int64_t b) { return scores[a] > scores[b]; });
  std::vector<double> weights(vocab);
  for (size_t token = 0; token < vocab; ++token) {
    weights[token] = std::exp((double{scores[token]} - scores[ranked[0]]) / options.temperature);
  }
  const size_t kept = options.top_k > 0 ? std::min<size_t>(options.top_k, vocab) : vocab;
  double total = 0;
  for (size_t i = 0; i < kept; ++i) {
    total += weights[ranked[i]];
  }
  std::vector<double> result(vocab);
  double sum = 0;
  for (size_t i = 0; i < kept && (options.top_p == 1 || sum < options.top_p * total); ++i) {
    sum += weights[ranked[i]];
    result[ranked[i]] = weights[ranked[i]] >= options.min_p ? weights[ranked[i]] : 0;
  }
  total = std::accumulate(result.begin(), result.end(), 0.0);
  for (double& probability : result) {
    probability /= total;
  }
  return result;
}

// Whether a uniform number draws this token, up to a rounding error.
bool draws(const std::vector<double>& distribution, double uniform, int64_t token) {
  if (token < 0 || token >= static_cast<int64_t>(distribution.size())) {
    return false;
  }
  const double below = std::accumulate(distribution.begin(), distribution.begin() + token, 0.0);
  return distribution[token] > 0 && below - 1e-5 <= uniform && uniform <= below + distribution[token] + 1e-5;
}

// ---- the device

struct Choice {
  cuda::SampleRecord record;
  Tokens top_tokens;
  Floats top_logprobs;

  bool operator==(const Choice& other) const {
    return std::memcmp(&record, &other.record, sizeof(record)) == 0 && top_tokens == other.top_tokens &&
           top_logprobs == other.top_logprobs;
  }
};

template <typename T>
std::vector<T> from_device(const T* data, int64_t count, cuda::Queue& queue) {
  const auto bytes = count * static_cast<int64_t>(sizeof(T));
  const at::Tensor host = cuda::pinned({bytes}, at::kByte);
  queue.copy(host.data_ptr(), data, bytes);
  queue.synchronize();
  const auto* begin = static_cast<const T*>(host.data_ptr());
  return {begin, begin + count};
}

class Device {
 public:
  Device(int rows, int64_t vocab, int blocks_per_row = 0)
      : vocab_(vocab),
        stride_(vocab + 5),
        host_(cuda::pinned({rows, stride_}, at::kFloat)),
        active_host_(cuda::pinned({rows}, at::kInt)),
        logits_(at::empty({rows, stride_}, cuda::on_device(0).dtype(at::kFloat))),
        active_(at::empty({rows}, cuda::on_device(0).dtype(at::kInt))),
        state(0, {rows, rows, vocab, kMaxTokens, kTop, blocks_per_row}) {
    host_.fill_(NAN);  // the padding must not be read
    active_host_.fill_(1);
  }

  void set(int row, const SamplingOptions& options, const Tokens& prompt = {}) {
    state.set(row, options, prompt, queue);
  }
  void set_logits(int row, const Floats& logits) {
    std::copy(logits.begin(), logits.end(), host_.data_ptr<float>() + row * stride_);
  }
  void set_active(int row, bool active) { active_host_.data_ptr<int32_t>()[row] = active ? 1 : 0; }
  void upload() {
    queue.copy(logits_.data_ptr(), host_.data_ptr(), host_.nbytes());
    queue.copy(active_.data_ptr(), active_host_.data_ptr(), active_host_.nbytes());
  }
  void launch() {
    state.sample({logits_.data_ptr<float>(), stride_, active_.data_ptr<int32_t>()}, static_cast<int>(host_.size(0)),
                 queue);
  }

  std::vector<Choice> choices() {
    const auto rows = host_.size(0);
    const auto records = from_device(state.records(), rows, queue);
    const auto tokens = from_device(state.top_tokens(), rows * kTop, queue);
    const auto logprobs = from_device(state.top_logprobs(), rows * kTop, queue);
    std::vector<Choice> result;
    for (int64_t row = 0; row < rows; ++row) {
      const int64_t count = std::clamp(records[row].top_count, 0, kTop);
      const int64_t begin = row * kTop;
      result.push_back({records[row],
                        {tokens.begin() + begin, tokens.begin() + begin + count},
                        {logprobs.begin() + begin, logprobs.begin() + begin + count}});
    }
    return result;
  }
  std::vector<Choice> sample() {
    upload();
    launch();
    return choices();
  }

  cuda::Queue queue{0};

 private:
  int64_t vocab_;
  int64_t stride_;
  at::Tensor host_;
  at::Tensor active_host_;
  at::Tensor logits_;
  at::Tensor active_;

 public:
  cuda::SamplerState state;
};

Floats random_logits(int64_t vocab, float scale, uint32_t seed, bool excluded = true) {
  std::mt19937 generator(seed);
  std::normal_distribution<float> normal;
  Floats logits(vocab);
  for (float& logit : logits) {
    logit = scale * normal(generator);
  }
  if (excluded) {
    for (int64_t token = 3; token < vocab; token += 7) {
      logits[token] = -kInfinity;
    }
  }
  return logits;
}

// Returns one set of options a row: each option alone, and all together.
std::vector<SamplingOptions> all_options(int64_t vocab) {
  std::vector<SamplingOptions> all;
  const auto add = [&](auto change) {
    SamplingOptions options;
    options.seed = 5;
    options.stream = all.size();
    change(options);
    all.push_back(options);
  };
  const int64_t last = vocab - 1;
  add([](SamplingOptions&) {});
  add([&](SamplingOptions& o) { o.logprobs = std::min<int64_t>(vocab, kTop); });
  add([](SamplingOptions& o) { o.temperature = 0.7; });
  add([](SamplingOptions& o) { o.temperature = 100; });
  add([](SamplingOptions& o) { o.temperature = 1, o.top_k = 7; });
  add([](SamplingOptions& o) { o.temperature = 1, o.top_p = 0.8; });
  add([](SamplingOptions& o) { o.temperature = 5, o.top_p = 0.97; });
  add([](SamplingOptions& o) { o.temperature = 0.5, o.top_p = 1e-6; });
  add([](SamplingOptions& o) { o.temperature = 1, o.min_p = 0.1; });
  add([](SamplingOptions& o) { o.temperature = 1.3, o.top_k = 20, o.top_p = 0.9, o.min_p = 0.05; });
  add([](SamplingOptions& o) { o.temperature = 2.5, o.top_k = 300, o.top_p = 0.95, o.logprobs = 1; });
  add([](SamplingOptions& o) { o.repetition_penalty = 1.7; });
  add([&](SamplingOptions& o) {
    o.presence_penalty = 0.5, o.frequency_penalty = 0.25;
    o.logit_bias = {{last, 1.5}, {0, 0.1}, {last, -0.3}, {0, 30.7}, {last / 2, -kInfinity}};
    o.bad_words = {{last / 3}, {0, 0, 0}, {last, last / 4}};
  });
  add([&](SamplingOptions& o) {
    o.temperature = 0.8, o.top_p = 0.9, o.logprobs = std::min<int64_t>(vocab, 5);
    o.repetition_penalty = 1.3, o.presence_penalty = -0.5, o.frequency_penalty = 0.25;
    o.logit_bias = {{last, 2}, {last / 2, -3}};
    if (vocab > 4) {
      o.bad_words = {{0, 1, 2, 1, last}, {last / 3}, {last, 2, last}, {1, 0}};
      o.stop_token_ids = {1, 2};
      o.min_new_tokens = 3;
    }
  });
  return all;
}

void expect_like_the_cpu(const Choice& choice, const Sample& expected, const Floats& logits,
                         const SamplingOptions& options, const Tokens& prompt, const Tokens& generated) {
  EXPECT(choice.record.failure == SampleFailure::none);
  const int64_t token = choice.record.token;
  EXPECT(token >= 0 && token < static_cast<int64_t>(logits.size()));
  if (options.temperature == 0) {
    EXPECT(token == expected.token);
  } else if (logits.size() <= 1000 || token != expected.token) {
    const auto distribution = probabilities(process(logits, options, prompt, generated), options);
    const double uniform = philox_uniform(options.seed, generated.size(), options.stream);
    EXPECT(draws(distribution, uniform, token));
    EXPECT(token == expected.token || draws(distribution, uniform, expected.token));
  }
  EXPECT(token != expected.token || std::abs(choice.record.logprob - expected.logprob) <= 1e-5);
  EXPECT(choice.record.top_count == expected.top_count);
  for (int64_t i = 0; i < std::min<int64_t>(choice.record.top_count, expected.top_count); ++i) {
    EXPECT(choice.top_tokens[i] == expected.top_tokens[i]);
    EXPECT(std::abs(choice.top_logprobs[i] - expected.top_logprobs[i]) <= 1e-5);
  }
}

// Samples a few tokens with each set of options, compares them with the CPU's samplers and returns the choices.
std::vector<Choice> run_beside_cpu(int64_t vocab, float scale, int steps, int blocks_per_row = 0) {
  const std::vector<SamplingOptions> options = all_options(vocab);
  const int rows = static_cast<int>(options.size());
  Device device(rows, vocab, blocks_per_row);
  const Tokens prompt = {0, vocab / 2, 0, vocab - 1, 0, 0};
  std::vector<Sampler> samplers;
  std::vector<Tokens> generated(rows);
  for (int row = 0; row < rows; ++row) {
    samplers.emplace_back(options[row], vocab, prompt, steps);
    device.set(row, options[row], prompt);
  }
  std::vector<Choice> all;
  int different = 0;
  for (int step = 0; step < steps; ++step) {
    std::vector<Floats> logits;
    for (int row = 0; row < rows; ++row) {
      logits.push_back(random_logits(vocab, scale, 1000 * step + row));
      device.set_logits(row, logits[row]);
    }
    const std::vector<Choice> choices = device.sample();
    for (int row = 0; row < rows; ++row) {
      const Sample expected = samplers[row].sample(logits[row].data(), step);
      expect_like_the_cpu(choices[row], expected, logits[row], options[row], prompt, generated[row]);
      different += choices[row].record.token != expected.token ? 1 : 0;
      samplers[row].append(choices[row].record.token);
      generated[row].push_back(choices[row].record.token);
    }
    all.insert(all.end(), choices.begin(), choices.end());
  }
  EXPECT(different <= 1);
  return all;
}

void test_choices_are_the_cpus() {
  for (const int64_t vocab : {5, 31, 1000}) {
    run_beside_cpu(vocab, 0.3F, 4);
    run_beside_cpu(vocab, 4.0F, 6);
  }
  run_beside_cpu(50257, 3.0F, 2);
}

// The number of blocks that share a row changes no bit: a row's result never depends on the size of its batch.
void test_the_number_of_blocks_does_not_matter() {
  const std::vector<Choice> one = run_beside_cpu(30000, 2.0F, 1, 1);  // too many scores for one block's shared memory
  if (cuda::devices()[0].compute_capability >= 90) {
    for (int blocks : {2, 8}) {
      EXPECT(run_beside_cpu(30000, 2.0F, 1, blocks) == one);
    }
  }
}

// Few candidates, more than one block ranks by itself, more than a warp lists, and no candidate far above the rest;
// with many ties.
void test_any_number_of_candidates() {
  constexpr int64_t kVocab = 40000;
  struct Case {
    int64_t count;
    int64_t apart;  // distance between their ids
    double top_p;
    int64_t top_k;
    double min_p;
  };
  const std::vector<Case> cases = {{1, 7, 0.9, 0, 0},        {100, 397, 0.9, 0, 0}, {100, 397, 0.95, 30, 0.2},
                                   {250, 1, 1, 40, 0},       {250, 151, 0.5, 0, 0}, {1500, 23, 0.9, 0, 0.05},
                                   {1500, 23, 0.97, 700, 0}, {3000, 1, 0.9, 0, 0},  {3000, 1, 1, 90, 0},
                                   {40, 1000, 0.9999, 0, 0}, {40000, 1, 0.9, 0, 0}, {40000, 1, 0.8, 500, 0},
                                   {20, 3, 1, 100, 0}};
  const int rows = static_cast<int>(cases.size());
  Device device(rows, kVocab);
  std::vector<SamplingOptions> options(rows);
  std::vector<Sampler> samplers;
  std::vector<Floats> logits;
  for (int row = 0; row < rows; ++row) {
    const Case& its = cases[row];
    options[row].temperature = 0.9;
    options[row].top_p = its.top_p;
    options[row].top_k = its.top_k;
    options[row].min_p = its.min_p;
    options[row].stream = row;
    options[row].repetition_penalty = row % 2 == 0 ? 1 : 1.5;
    Floats scores = random_logits(kVocab, 0.5F, 500 + row, false);
    const Floats jump = random_logits(kVocab, 1, 600 + row, false);
    for (int64_t i = 0; i < its.count; ++i) {
      const int64_t token = (11 + i * its.apart) % kVocab;
      scores[token] = std::round(4 * jump[token]) / 4 + 14;
    }
    samplers.emplace_back(options[row], kVocab, Tokens{}, 8);
    device.set(row, options[row]);
    device.set_logits(row, scores);
    logits.push_back(scores);
  }
  std::vector<Tokens> generated(rows);
  int different = 0;
  for (int step = 0; step < 6; ++step) {
    const std::vector<Choice> choices = device.sample();
    for (int row = 0; row < rows; ++row) {
      const Sample expected = samplers[row].sample(logits[row].data(), step);
      expect_like_the_cpu(choices[row], expected, logits[row], options[row], {}, generated[row]);
      different += choices[row].record.token != expected.token ? 1 : 0;
      samplers[row].append(choices[row].record.token);
      generated[row].push_back(choices[row].record.token);
    }
  }
  EXPECT(different <= 1);
}

void test_tiny_vocabularies() {
  for (const int64_t vocab : {1, 2}) {
    SamplingOptions greedy;
    greedy.logprobs = vocab;
    SamplingOptions drawn = greedy;
    drawn.temperature = 1;
    drawn.top_p = 0.9;
    drawn.repetition_penalty = 2;
    Device device(2, vocab);
    device.set(0, greedy);
    device.set(1, drawn, {0});
    Sampler samplers[] = {Sampler(greedy, vocab, {}, 4), Sampler(drawn, vocab, Tokens{0}, 4)};
    for (int step = 0; step < 4; ++step) {
      for (int row = 0; row < 2; ++row) {
        device.set_logits(row, random_logits(vocab, 1, step));
      }
      const auto choices = device.sample();
      for (int row = 0; row < 2; ++row) {
        const Floats logits = random_logits(vocab, 1, step);
        const Sample expected = samplers[row].sample(logits.data(), step);
        EXPECT(choices[row].record.token == expected.token);
        EXPECT(choices[row].record.top_count == expected.top_count);
        EXPECT(std::abs(choices[row].record.logprob - expected.logprob) <= 1e-5);
        samplers[row].append(expected.token);
      }
    }
  }
}

void test_ties_go_to_the_lowest_id() {
  struct Case {
    SamplingOptions options;
    Floats logits;
    Tokens kept;  // the tokens that may be drawn
  };
  const Floats mixed = {0, 1, 1, -0.0F, 1, 0};
  std::vector<Case> cases;
  const auto add = [&](int64_t top_k, double top_p, const Floats& logits, const Tokens& kept) {
    SamplingOptions options;
    options.temperature = 1;
    options.top_k = top_k;
    options.top_p = top_p;
    options.logprobs = 4;
    options.stream = cases.size();
    cases.push_back({options, logits, kept});
  };
  add(2, 1, mixed, {1, 2});
  add(4, 1, mixed, {0, 1, 2, 4});
  add(5, 1, mixed, {0, 1, 2, 3, 4});
  add(0, 0.5, Floats(6, 0.0F), {0, 1, 2});
  add(4, 0.5, Floats(6, -7.0F), {0, 1});
  add(4, 0.999, Floats(6, -7.0F), {0, 1, 2, 3});
  Device device(static_cast<int>(cases.size()), 6);
  std::vector<Tokens> drawn(cases.size());
  for (size_t row = 0; row < cases.size(); ++row) {
    device.set(static_cast<int>(row), cases[row].options);
    device.set_logits(static_cast<int>(row), cases[row].logits);
  }
  for (int step = 0; step < 60; ++step) {
    const auto choices = device.sample();
    for (size_t row = 0; row < cases.size(); ++row) {
      drawn[row].push_back(choices[row].record.token);
    }
    EXPECT((choices[0].top_tokens == Tokens{1, 2, 4, 0}));
    EXPECT((choices[3].top_tokens == Tokens{0, 1, 2, 3}));
  }
  for (size_t row = 0; row < cases.size(); ++row) {
    std::sort(drawn[row].begin(), drawn[row].end());
    drawn[row].erase(std::unique(drawn[row].begin(), drawn[row].end()), drawn[row].end());
    EXPECT(drawn[row] == cases[row].kept);
  }
  // Ties that span blocks: half of 20000 equal scores are kept.
  SamplingOptions half;
  half.temperature = 1;
  half.top_k = 10000;
  Device wide(1, 20000);
  wide.set(0, half);
  wide.set_logits(0, Floats(20000, 2.5F));
  for (int step = 0; step < 3; ++step) {
    EXPECT(wide.sample()[0].record.token == static_cast<int64_t>(philox_uniform(0, step, 0) * 10000));
  }
}

void test_failures() {
  struct Case {
    Floats logits;
    SampleFailure failure;
  };
  const std::vector<Case> cases = {
      {{0, NAN, 1}, SampleFailure::broken_logits},
      {{0, -NAN, 1}, SampleFailure::broken_logits},
      {{0, 2, kInfinity}, SampleFailure::broken_logits},
      {{NAN, NAN, NAN}, SampleFailure::broken_logits},
      {{-kInfinity, -kInfinity, -kInfinity}, SampleFailure::all_excluded},
      {{1, 2, -kInfinity}, SampleFailure::all_excluded},  // by its bad words
      {{-kInfinity, -3e38F, -kInfinity}, SampleFailure::none},
  };
  // A large vocabulary, for which several blocks share a row, excludes all other tokens.
  const auto widened = [](Floats logits, int64_t vocab) {
    logits.resize(vocab, -kInfinity);
    return logits;
  };
  for (const int64_t vocab : {3, 9000}) {
    for (const double temperature : {0.0, 1.0}) {
      SamplingOptions options;
      options.temperature = temperature;
      options.logprobs = 2;
      Device device(static_cast<int>(cases.size()), vocab);
      for (size_t row = 0; row < cases.size(); ++row) {
        options.bad_words.clear();
        if (row == 5) {
          options.bad_words = {{0}, {1}};
        }
        device.set(static_cast<int>(row), options);
        device.set_logits(static_cast<int>(row), widened(cases[row].logits, vocab));
      }
      const auto choices = device.sample();
      for (size_t row = 0; row < cases.size(); ++row) {
        EXPECT(choices[row].record.failure == cases[row].failure);
        EXPECT(choices[row].record.token == (cases[row].failure == SampleFailure::none ? 1 : 0));
        EXPECT(choices[row].record.top_count == (cases[row].failure == SampleFailure::none ? 1 : 0));
      }
      // A failed row keeps its state and continues with better logits.
      const Floats better = widened({0, 1, 2}, vocab);
      device.set_logits(0, better);
      options.bad_words.clear();
      Sampler sampler(options, vocab, {}, 1);
      EXPECT(device.sample()[0].record.token == sampler.sample(better.data(), 0).token);
    }
  }
}

void test_extreme_temperatures() {
  const Floats logits = {1, -kInfinity, 3, 2};
  for (const double temperature : {1e-300, 1e-8, 1e8, 1e300}) {
    SamplingOptions options;
    options.temperature = temperature;
    options.top_p = 0.9;
    Device device(1, 4);
    Sampler sampler(options, 4, {}, 10);
    device.set(0, options);
    device.set_logits(0, logits);
    for (int step = 0; step < 10; ++step) {
      EXPECT(device.sample()[0].record.token == sampler.sample(logits.data(), step).token);
    }
  }
}

void test_inactive_rows_and_rows_used_again() {
  constexpr int64_t kVocab = 1000;
  SamplingOptions first;
  first.temperature = 1;
  first.repetition_penalty = 1.5;
  first.frequency_penalty = 2;
  first.logprobs = 3;
  SamplingOptions second = first;
  second.seed = 9;
  second.bad_words = {{7, 8}, {5}};
  Device device(3, kVocab);  // the last row stays empty
  device.set_active(2, false);
  device.set(0, first, {1, 2});
  device.set(1, first, {3});
  Sampler samplers[] = {Sampler(first, kVocab, Tokens{1, 2}, 20), Sampler(first, kVocab, Tokens{3}, 20)};
  int64_t steps[2] = {};
  std::vector<Choice> before;
  for (int step = 0; step < 9; ++step) {
    const bool active[] = {step % 3 != 2, step % 2 == 0};
    if (step == 5) {  // at once, while the last step may still run
      device.set(0, first, {4});
      device.set(0, second, {5, 7});
      samplers[0] = Sampler(second, kVocab, Tokens{5, 7}, 20);
      steps[0] = 0;
    }
    const Floats logits = random_logits(kVocab, 1, 77 + step);
    for (int row = 0; row < 2; ++row) {
      device.set_active(row, active[row]);
      device.set_logits(row, logits);
    }
    const std::vector<Choice> choices = device.sample();
    for (int row = 0; row < 2; ++row) {
      if (active[row]) {
        EXPECT(choices[row].record.token == samplers[row].sample(logits.data(), steps[row]++).token);
        samplers[row].append(choices[row].record.token);
      } else {
        EXPECT(choices[row] == before[row]);
      }
    }
    before = choices;
  }
}

void test_a_graph_replays_it() {
  constexpr int64_t kVocab = 9000;
  SamplingOptions options;
  options.temperature = 1;
  options.top_p = 0.9;
  options.frequency_penalty = 1;
  const Floats logits = random_logits(kVocab, 1, 3);
  Sampler sampler(options, kVocab, Tokens{1, 2, 3}, 4);
  Device device(1, kVocab);
  device.set(0, options, {1, 2, 3});
  device.set_logits(0, logits);
  device.upload();
  cuda::Graph graph;
  graph.capture(device.queue, [&] { device.launch(); });
  for (int step = 0; step < 4; ++step) {
    graph.replay(device.queue);
    const int64_t token = device.choices()[0].record.token;
    EXPECT(token == sampler.sample(logits.data(), step).token);
    sampler.append(token);
  }
}

// Returns a bound that chi-square exceeds with probability 0.001 (Wilson and Hilferty).
double chi_square_bound(int degrees) {
  const double x = 2.0 / (9.0 * degrees);
  return degrees * std::pow(1 - x + 3.09 * std::sqrt(x), 3);
}

void test_draws_follow_the_distribution() {
  constexpr int kRows = 64;
  constexpr int kSteps = 64;
  constexpr int64_t kVocab = 48;
  const Floats logits = random_logits(kVocab, 1.5F, 11);
  for (const bool filtered : {false, true}) {
    SamplingOptions options;
    options.temperature = 1.3;
    if (filtered) {
      options.top_k = 20;
      options.top_p = 0.9;
      options.min_p = 0.05;
    }
    Device device(kRows, kVocab);
    for (int row = 0; row < kRows; ++row) {
      options.stream = row;
      device.set(row, options);
      device.set_logits(row, logits);
    }
    device.upload();
    std::vector<int> counts(kVocab);
    for (int step = 0; step < kSteps; ++step) {
      device.launch();
      for (const auto& record : from_device(device.state.records(), kRows, device.queue)) {
        ++counts[record.token];
      }
    }
    const auto distribution = probabilities(logits, options);
    double chi_square = 0;
    int degrees = -1;
    for (int64_t token = 0; token < kVocab; ++token) {
      const double expected = distribution[token] * kRows * kSteps;
      EXPECT(expected > 0 || counts[token] == 0);
      if (expected > 0) {
        chi_square += (counts[token] - expected) * (counts[token] - expected) / expected;
        ++degrees;
      }
    }
    EXPECT(chi_square < chi_square_bound(degrees));
  }
}

void test_what_does_not_fit_is_refused() {
  using cuda::SamplerState;
  const auto request = [](const SamplingOptions& options, const Tokens& prompt = {}) {
    SamplerState::check_request(options, prompt, 100, kMaxTokens, kTop);
  };
  SamplingOptions options;
  request(options);
  options.logprobs = kTop + 1;
  EXPECT_THROWS(request(options));
  options = {};
  options.logit_bias.assign(cuda::kMaxLogitBiases + 1, {1, 1.0});
  EXPECT_THROWS(request(options));
  options = {};
  options.bad_words = {Tokens(cuda::kMaxBadWordTokens + 1, 1)};
  EXPECT_THROWS(request(options));
  options = {};
  options.stop_token_ids.assign(cuda::kMaxStopTokens + 1, 1);
  EXPECT_THROWS(request(options));
  options = {};
  options.temperature = -1;
  EXPECT_THROWS(request(options));
  EXPECT_THROWS(request({}, {100}));
  EXPECT_THROWS(request({}, Tokens(kMaxTokens + 1, 1)));
  EXPECT_THROWS(SamplerState(0, {1, 1, cuda::kMaxSampledVocab + 1, 10, kTop}));
  EXPECT_THROWS(SamplerState(0, {1, 1, 100, 10, cuda::kMaxTopTokens + 1}));
  EXPECT_THROWS(SamplerState(0, {1, 1, 100, 10, kTop, 3}));
  EXPECT_THROWS(SamplerState(0, {2, 1, 100, 10, kTop}));
  EXPECT(SamplerState::bytes(0, {2, 2, 100, 10, kTop}) > 0);
}

// Tokens drafted one by one and verified in one pass, kept or dropped, equal tokens sampled one by one.
void test_drafts() {
  constexpr int64_t kVocab = 600;
  constexpr int kAhead = 4;
  const std::vector<SamplingOptions> options = all_options(kVocab);
  const auto sequences = static_cast<int>(options.size());
  const Tokens prompt = {0, 1, 2, 5, 1};
  const auto floats = cuda::on_device(0).dtype(at::kFloat);
  const auto ints = cuda::on_device(0).dtype(at::kInt);
  std::vector<at::Tensor> logits;
  cuda::Queue queue(0);
  for (int j = 0; j < kAhead; ++j) {
    for (int s = 0; s < sequences; ++s) {
      const Floats random = random_logits(kVocab, 2, 100 + j % 2);  // few tokens, so that penalties apply
      logits.push_back(at::from_blob(const_cast<float*>(random.data()), {kVocab}, at::kFloat).clone());
    }
  }
  at::Tensor rows, active, accepted;
  queue.run([&] {
    rows = at::stack(logits).to(floats);
    active = at::ones({kAhead * sequences}, ints);
    accepted = at::full({sequences}, kAhead - 2, ints);
  });
  const auto at_row = [&](int j) -> cuda::SamplerState::Rows {
    return {rows.const_data_ptr<float>() + j * sequences * kVocab, kVocab, active.const_data_ptr<int32_t>()};
  };
  cuda::SamplerState plain(0, {sequences, sequences, kVocab, kMaxTokens, kTop});
  cuda::SamplerState drafting(0, {sequences, kAhead * sequences, kVocab, kMaxTokens, kTop});
  for (int s = 0; s < sequences; ++s) {
    plain.set(s, options[s], prompt, queue);
    drafting.set(s, options[s], prompt, queue);
  }
  std::vector<cuda::SampleRecord> expected;
  for (int j = 0; j < kAhead; ++j) {
    plain.sample(at_row(j), sequences, queue);
    const auto records = from_device(plain.records(), sequences, queue);
    expected.insert(expected.end(), records.begin(), records.end());
  }
  const auto expect_like = [&](const std::vector<cuda::SampleRecord>& records, int from) {
    for (size_t i = 0; i < records.size(); ++i) {
      const cuda::SampleRecord& other = expected[from * sequences + i];
      EXPECT(records[i].token == other.token && records[i].logprob == other.logprob);
      EXPECT(records[i].failure == other.failure);
    }
  };
  for (int j = 0; j < kAhead - 1; ++j) {
    drafting.draft(at_row(j), sequences, j, queue);
    expect_like(from_device(drafting.records(), sequences, queue), j);
  }
  drafting.verify(at_row(0), sequences, kAhead, queue);
  const auto verified = from_device(drafting.records(), kAhead * sequences, queue);
  expect_like(verified, 0);
  EXPECT(verified[kAhead * sequences - 1].top_count == expected[kAhead * sequences - 1].top_count);
  drafting.append_drafted(accepted.const_data_ptr<int32_t>(), sequences, queue);
  for (int j = kAhead - 2; j < kAhead; ++j) {
    drafting.sample(at_row(j), sequences, queue);
    expect_like(from_device(drafting.records(), sequences, queue), j);
  }
}

// A mask chooses as logits of -inf do, to the bit, on both backends; rows that are not masked ignore theirs.
void expect_masks(int64_t vocab, int blocks_per_row) {
  constexpr int kAhead = 2;
  std::vector<SamplingOptions> options = all_options(vocab);
  const auto sequences = static_cast<int>(options.size());
  const int rows = kAhead * sequences;
  cuda::Queue queue(0);
  cuda::SamplerState plain(0, {sequences, rows, vocab, kMaxTokens, kTop, blocks_per_row});
  cuda::SamplerState masking(0, {sequences, rows, vocab, kMaxTokens, kTop, blocks_per_row});
  const at::Tensor free = at::empty({rows, vocab}, at::kFloat);
  const at::Tensor excluded = at::empty({rows, vocab}, at::kFloat);
  std::mt19937 generator(static_cast<uint32_t>(vocab));
  for (int s = 0; s < sequences; ++s) {
    const bool masked = s % 3 != 0;
    plain.set(s, options[s], {}, queue);
    options[s].masked = masked;
    masking.set(s, options[s], {}, queue);
    Sampler sampler(options[s], vocab, {}, kAhead);
    for (int j = 0; j < kAhead; ++j) {
      const int64_t row = j * sequences + s;
      Floats logits = random_logits(vocab, 1, static_cast<uint32_t>(row));
      int32_t* mask = masking.masks() + (s * kAhead + j) * masking.masks_stride();
      std::generate_n(mask, mask_words(vocab), [&] { return static_cast<int32_t>(generator() & generator()); });
      mask[0] |= 1;  // a token that is not excluded
      std::copy(logits.begin(), logits.end(), free.data_ptr<float>() + row * vocab);
      const Sample chosen = sampler.sample(logits.data(), j, masked ? mask : nullptr);
      for (int32_t token = 0; token < vocab && masked; ++token) {
        logits[token] = allows(mask, token) ? logits[token] : -kInfinity;
      }
      std::copy(logits.begin(), logits.end(), excluded.data_ptr<float>() + row * vocab);
      const Sample expected = sampler.sample(logits.data(), j);
      EXPECT(chosen.token == expected.token && chosen.logprob == expected.logprob);
    }
  }
  at::Tensor active, all, some;
  queue.run([&] {
    const at::TensorOptions floats = cuda::on_device(0).dtype(at::kFloat);
    active = at::ones({rows}, cuda::on_device(0).dtype(at::kInt));
    all = free.to(floats);
    some = excluded.to(floats);
  });
  masking.send_masks(0, rows, queue);
  const auto* wanted = active.const_data_ptr<int32_t>();
  for (cuda::SamplerState* state : {&plain, &masking}) {  // the second rows follow drafted tokens
    state->draft({some.const_data_ptr<float>(), vocab, wanted}, sequences, 0, queue);
  }
  plain.verify({some.const_data_ptr<float>(), vocab, wanted}, sequences, kAhead, queue);
  masking.verify({all.const_data_ptr<float>(), vocab, wanted, /*masked=*/true}, sequences, kAhead, queue);
  const auto expected = from_device(plain.records(), rows, queue);
  const auto chosen = from_device(masking.records(), rows, queue);
  EXPECT(std::memcmp(expected.data(), chosen.data(), rows * sizeof(cuda::SampleRecord)) == 0);
  const auto top_tokens = [&](const cuda::SamplerState& state) {  // of the second row, which reports the most
    return from_device(state.top_tokens() + kTop, chosen[1].top_count, queue);
  };
  EXPECT(chosen[1].top_count > 0 && top_tokens(plain) == top_tokens(masking));
  masking.verify({some.const_data_ptr<float>(), vocab, wanted}, sequences, kAhead, queue);
  const auto free_of_masks = from_device(masking.records(), rows, queue);
  EXPECT(std::memcmp(expected.data(), free_of_masks.data(), rows * sizeof(cuda::SampleRecord)) == 0);
}

void test_masks() {
  expect_masks(45, 1);
  expect_masks(600, 2);
  expect_masks(9001, 8);
}

// The longest lists that a request may have; every entry has an effect.
void test_full_lists() {
  constexpr int64_t kVocab = 10000;
  SamplingOptions options;
  for (int64_t i = 0; i < cuda::kMaxLogitBiases; ++i) {
    options.logit_bias.emplace_back((i * 7919) % kVocab, 20.0);
  }
  for (int64_t i = 0; i < cuda::kMaxBadWordTokens / 2; ++i) {
    options.bad_words.push_back({4, (i * 7919) % kVocab});
  }
  for (int64_t i = 0; i < cuda::kMaxStopTokens; ++i) {
    options.stop_token_ids.push_back(((cuda::kMaxBadWordTokens / 2 + i) * 7919) % kVocab);
  }
  options.min_new_tokens = 1;
  options.logprobs = kTop;
  const Floats logits = random_logits(kVocab, 1, 8, false);
  Sampler sampler(options, kVocab, Tokens{4}, 1);
  Device device(1, kVocab);
  device.set(0, options, {4});
  device.set_logits(0, logits);
  EXPECT(device.sample()[0].record.token == sampler.sample(logits.data(), 0).token);
}

void test_the_order_of_threads_does_not_matter() {
#if __has_include("emulator.h")
  using emulation::Order;
  emulation::set_order(Order::forward);
  const std::vector<Choice> forward = run_beside_cpu(9000, 1.0F, 2);
  emulation::set_order(Order::backward);
  EXPECT(run_beside_cpu(9000, 1.0F, 2) == forward);
  for (uint64_t seed = 1; seed < 3; ++seed) {
    emulation::set_order(Order::random, seed);
    EXPECT(run_beside_cpu(9000, 1.0F, 2) == forward);
    test_failures();
  }
  emulation::set_order(Order::forward);
#endif
}

// Tests every option in few launches, for tools with which a launch takes seconds.
void test_every_option() { run_beside_cpu(9000, 2.0F, 1); }

}  // namespace
}  // namespace dlf

int main(int argc, char** argv) {
  using namespace dlf;
  return testing::run_cuda(argc, argv,
                           {
                               {"every option", test_every_option, true},
                               {"choices are the CPU's", test_choices_are_the_cpus},
                               {"the number of blocks does not matter", test_the_number_of_blocks_does_not_matter},
                               {"any number of candidates", test_any_number_of_candidates},
                               {"tiny vocabularies", test_tiny_vocabularies},
                               {"ties go to the lowest id", test_ties_go_to_the_lowest_id},
                               {"failures", test_failures},
                               {"extreme temperatures", test_extreme_temperatures},
                               {"inactive rows and rows used again", test_inactive_rows_and_rows_used_again},
                               {"a graph replays it", test_a_graph_replays_it},
                               {"draws follow the distribution", test_draws_follow_the_distribution},
                               {"what does not fit is refused", test_what_does_not_fit_is_refused},
                               {"full lists", test_full_lists},
                               {"drafts are what comes without", test_drafts},
                               {"masks are logits of -inf", test_masks},
                               {"the order of threads does not matter", test_the_order_of_threads_does_not_matter},
                           });
}
