#pragma once

#include <ATen/ops/empty.h>

#include <algorithm>
#include <cmath>
#include <functional>
#include <map>
#include <memory>
#include <random>
#include <set>
#include <stdexcept>
#include <string>
#include <string_view>
#include <unordered_map>
#include <vector>

#include "check.h"
#include "engine/step_loop.h"
#include "model/slots.h"

// Helpers for the tests of step loops: a tiny random family, requests, and checks of their results.
namespace dlf::testing {

inline constexpr int64_t kVocab = 50;

inline at::Tensor random_tensor(at::IntArrayRef shape, std::mt19937& generator) {
  at::Tensor tensor = at::empty(shape, at::kFloat);
  std::normal_distribution<float> normal(0.0F, 0.3F);
  auto* data = tensor.mutable_data_ptr<float>();
  for (int64_t i = 0; i < tensor.numel(); ++i) {
    data[i] = normal(generator);
  }
  return tensor;
}

// A model with 4 heads, 2 of keys and values, and two channels of a head for each rotary frequency.
inline ModelSpec tiny_spec(int64_t vocab, int64_t hidden, int64_t feed_forward, std::vector<float> frequencies,
                           int64_t layers) {
  const auto head_dim = static_cast<int64_t>(2 * frequencies.size());
  ModelSpec spec;
  spec.vocab_size = vocab;
  spec.hidden_size = hidden;
  spec.attention.heads = 4;
  spec.attention.kv_heads = 2;
  spec.attention.head_dim = head_dim;
  spec.attention.query_scalar = head_dim;
  spec.feed_forward.size = feed_forward;
  spec.ropes = {{std::move(frequencies)}};
  spec.layers.resize(layers);
  return spec;
}

// If `mixed`, the second layer has experts.
inline std::shared_ptr<const Weights> tiny_model(uint32_t seed, bool mixed = false) {
  ModelSpec spec = tiny_spec(kVocab, 16, 24, {1.0F, 0.01F}, 2);
  if (mixed) {
    spec.experts = {5, 2, 16, false};
    spec.layers[1].experts = true;
  }
  std::mt19937 generator(seed);
  TensorMap tensors;
  for (const TensorSlot& slot : tensor_slots(spec)) {
    if (slot.name != "head") {
      tensors[slot.name] = random_tensor(slot.shape, generator);
    }
  }
  return std::make_shared<const Weights>(spec, tensors);
}

// Returns a plan with four lanes: a large model and two experts that share a base.
inline FusionPlan tiny_plan() {
  FusionPlan plan;
  plan.lane_model = {0, 1, 2, 3};
  plan.experts = {{1, 2}, {3, 2}};
  plan.vocab = kVocab;
  return plan;
}

// Returns the same plan with other ids for the experts and the base, which lack a few tokens.
inline FusionPlan mapped_plan() {
  FusionPlan plan = tiny_plan();
  plan.token_maps.resize(4);
  for (const int32_t model : {1, 2, 3}) {
    TokenMap& map = plan.token_maps[model];
    for (int32_t token = 0; token < kVocab; ++token) {
      const auto id = static_cast<int32_t>((token + 7 * model) % kVocab);
      map.feed.push_back(id);
      map.read.push_back(token % 11 == 5 ? -1 : id);
    }
  }
  return plan;
}

// Returns a random adapter of tiny_model(), for all products, or for q, v and down of the second layer.
inline std::shared_ptr<const Adapter> tiny_adapter(uint32_t seed, int64_t rank, bool all) {
  std::mt19937 generator(seed);
  TensorMap tensors;
  std::unordered_map<std::string, double> scales;
  const auto add = [&](const std::string& name, int64_t out, int64_t in) {
    tensors[name + ".a"] = random_tensor({rank, in}, generator);
    tensors[name + ".b"] = random_tensor({rank, out}, generator);
    scales[name] = 1.5 / static_cast<double>(rank);
  };
  const std::shared_ptr<const Weights> base = tiny_model(1);
  for (int layer = all ? 0 : 1; layer < 2; ++layer) {
    for (const LinearSlot& slot : linear_slots(base->spec(), layer)) {
      const std::string_view name = slot.name;
      if (all || name == "q" || name == "v" || name == "down") {
        add(slot_of(layer, slot.name), slot.out, slot.in);
      }
    }
  }
  return std::make_shared<Adapter>(base->spec(), tensors, scales);
}

inline Models tiny_models() { return {tiny_model(1), tiny_model(2), tiny_model(3), tiny_model(4)}; }

inline Request make_request(int64_t id, int64_t prompt, int64_t max_new_tokens, double temperature = 1.0,
                            Combine combine = Combine::select) {
  Request request;
  request.rule.combine = combine;
  request.id = id;
  request.max_new_tokens = max_new_tokens;
  request.sampling.temperature = temperature;
  request.sampling.top_p = 0.9;
  request.sampling.repetition_penalty = 1.1;
  request.sampling.logprobs = 5;
  request.sampling.seed = static_cast<uint64_t>(id);
  request.experts = {0, 1};
  for (int lane = 0; lane < 4; ++lane) {
    std::vector<int64_t>& tokens = request.prompts.emplace_back().tokens;
    for (int64_t i = 0; i < prompt; ++i) {
      tokens.push_back((7 * i + id) % kVocab);
    }
  }
  return request;
}

// Returns a rule over probabilities, of seven.
inline Rule probability_rule(int64_t index) {
  switch (index) {
    case 0:
      return {Combine::jsd, Match::symmetric, {}};
    case 1:
      return {Combine::static_alpha, Match::symmetric, {{2.0, 0.4, true}, {2.0, 0.5}}};
    case 2:
      return {Combine::centroid, Match::symmetric, {}, 1.0, 0.1};
    case 3:
      return {Combine::joint, Match::symmetric, {}, 1.3};
    case 4:
      return {Combine::select, Match::symmetric, {}, 1.0, 0.0, {GateKind::top_prob, 0.05}};
    case 5:
      return {Combine::certainty, Match::symmetric, {}, 0.9};
    default:
      return {Combine::jsd, Match::symmetric, {{2.0, 0.2, true}, {}}, 0.8, 0.05, {GateKind::disagree}};
  }
}

// Returns a rule that differs from those of the other ids up to 37.
inline Rule rule_of(int64_t id) {
  if (id >= 30) {
    return probability_rule(id - 30);
  }
  Rule rule = {kCombineTable[id % 5].combine, kMatchTable[id / 5 % 3].match, {{2.0, {}}, {2.0, {}}}};
  if (id % 5 == 3) {
    rule.weights = {{2.0, 0.4}, {2.0, -0.3}};
  } else if (id / 15 == 1) {
    rule.weights = {{0.7, {}}, {2.0, 0.2}};
  }
  return rule;
}

// Returns a request whose prompts begin with tokens common to all requests: `shared` ones for the first expert,
// which has examples, a third of them for the other lanes.
inline Request shared_request(int64_t id, int64_t shared, int64_t own) {
  Request request = make_request(id, 0, 6);
  for (size_t lane = 0; lane < 4; ++lane) {
    Prompt& prompt = request.prompts[lane];
    const int64_t common = lane == 1 ? shared : shared / 3;
    for (int64_t i = 0; i < common; ++i) {
      prompt.tokens.push_back((11 * i + i / 7) % kVocab);
    }
    prompt.breaks = {common};
    for (int64_t i = 0; i < own; ++i) {
      prompt.tokens.push_back((3 * i + id) % kVocab);
    }
  }
  return request;
}

using Tokens = std::map<int64_t, std::vector<int64_t>>;

inline Tokens run(StepLoop& loop) {
  Tokens tokens;
  while (!loop.idle()) {
    for (const StepOutput* output : loop.step()) {
      tokens[output->request].push_back(output->token);
    }
  }
  return tokens;
}

// Returns a request to score continuations of 1, 4 and 9 tokens after prompts of different lengths.
inline ScoreRequest score_request(int64_t id, std::vector<int> experts = {0, 1}, Combine combine = Combine::select) {
  ScoreRequest request;
  request.rule.combine = combine;
  request.prompts = shared_request(id, 30, 3).prompts;
  request.experts = std::move(experts);
  request.continuations = {{7}, {1, 2, 3, 4}, {7, 7, 9, 49, 0, 11, 12, 5, 30}};
  for (size_t lane = 1; lane < 4; ++lane) {
    const bool used = lane == 2 || std::count(request.experts.begin(), request.experts.end(), lane == 1 ? 0 : 1) > 0;
    if (!used || request.experts.empty()) {
      request.prompts[lane] = {};
    }
  }
  return request;
}

inline void expect_scores_near(const std::vector<Score>& scores, const std::vector<Score>& expected, double bound) {
  const auto near = [&](const std::vector<double>& a, const std::vector<double>& b) {
    EXPECT(a.size() == b.size());
    for (size_t i = 0; i < std::min(a.size(), b.size()); ++i) {
      EXPECT(std::abs(a[i] - b[i]) <= bound);
    }
  };
  EXPECT(scores.size() == expected.size());
  for (size_t i = 0; i < std::min(scores.size(), expected.size()); ++i) {
    EXPECT(scores[i].failure == expected[i].failure);
    EXPECT(scores[i].greedy == expected[i].greedy);
    near(scores[i].logprobs, expected[i].logprobs);
    near(scores[i].alpha, expected[i].alpha);
    near(scores[i].f, expected[i].f);
    near(scores[i].g, expected[i].g);
  }
}

// Requests with rules of their own get the same tokens in a batch, drafted or not, as alone.
inline void expect_rules_to_keep_apart(const std::function<std::unique_ptr<StepLoop>()>& make) {
  const auto request = [](int64_t id, const Speculation& speculation) {
    Request ruled = make_request(1, 4, 8);
    ruled.id = id;
    ruled.rule = rule_of(id);
    ruled.speculation = speculation;
    return ruled;
  };
  const std::vector<int64_t> ids = {0, 1, 2, 3, 4, 6, 7, 12, 17, 30, 31, 32, 33, 34, 35, 36};
  Tokens alone;
  std::map<int64_t, std::set<bool>> closed;  // whether the experts of a request had no weight, over its tokens
  const auto one_by_one = make();
  for (const int64_t id : ids) {
    one_by_one->add(request(id, {}));
    while (!one_by_one->idle()) {
      for (const StepOutput* output : one_by_one->step()) {
        alone[id].push_back(output->token);
        closed[id].insert(output->alpha == std::vector<double>{0.0, 0.0});
      }
    }
  }
  EXPECT(closed[34].size() == 2);  // a gate that opens and closes
  EXPECT(std::set<std::vector<int64_t>>({alone[0], alone[1], alone[2], alone[3]}).size() > 2);
  for (const Speculation& speculation :
       {Speculation(), Speculation{4, kAutoDrafter, false}, Speculation{3, 3, false}}) {
    const auto loop = make();
    for (const int64_t id : ids) {
      loop->add(request(id, speculation));
    }
    EXPECT(run(*loop) == alone);
  }
}

// Scores with sequences in all slots, and repeats interrupted scoring, which would show a slot that is not freed.
inline void expect_scores_beside_sequences(StepLoop& loop, int rounds, const std::function<void(StepLoop&)>& add) {
  const auto nothing = [] {};
  const std::vector<Score> expected = loop.score(score_request(1), nothing);
  EXPECT(expected.at(2).logprobs.size() == 9 && expected[2].alpha.size() == 18);
  EXPECT(expected[0].logprobs.at(0) == expected[2].logprobs.at(0));
  add(loop);
  const Tokens alone = run(loop);
  add(loop);
  Tokens tokens;
  while (!loop.idle()) {
    for (const StepOutput* output : loop.step()) {
      tokens[output->request].push_back(output->token);
    }
    expect_scores_near(loop.score(score_request(1), nothing), expected, 0);
  }
  EXPECT(tokens == alone);
  for (int round = 0; round < rounds; ++round) {
    int polls = 0;
    const auto interrupt = [&] {
      if (++polls > round % 2) {
        throw std::runtime_error("interrupted");
      }
    };
    EXPECT_THROWS(loop.score(score_request(1), interrupt));
  }
  expect_scores_near(loop.score(score_request(1), nothing), expected, 0);
}

// Runs a step in each poll: neither the scores nor the decoded tokens change.
inline void expect_steps_while_scoring(StepLoop& loop, const std::function<void(StepLoop&)>& add) {
  const std::vector<Score> expected = loop.score(score_request(1), [] {});
  add(loop);
  const Tokens alone = run(loop);
  add(loop);
  Tokens tokens;
  int polls = 0;
  while (!loop.idle()) {
    const std::vector<Score> scores = loop.score(score_request(1), [&] {
      ++polls;
      EXPECT_THROWS(loop.score(score_request(2), [] {}));
      for (const StepOutput* output : loop.step()) {
        tokens[output->request].push_back(output->token);
      }
    });
    expect_scores_near(scores, expected, 0);
  }
  EXPECT(polls > 5);
  EXPECT(tokens == alone);
}

inline void expect_scores_that_do_not_fit_are_refused(StepLoop& loop) {
  const auto refused = [&](const std::function<void(ScoreRequest&)>& change) {
    ScoreRequest request = score_request(1);
    change(request);
    EXPECT_THROWS(loop.score(request, [] {}));
  };
  refused([](ScoreRequest& request) { request.continuations[1].clear(); });
  refused([](ScoreRequest& request) { request.continuations[1][0] = kVocab; });
  refused([](ScoreRequest& request) { request.continuations[0].assign(64, 1); });
  refused([](ScoreRequest& request) { request.prompts[2] = {}; });
  EXPECT(loop.score(score_request(1), [] {}).size() == 3);
}

// Repeats the cancellation, which would show a slot that is not freed.
inline void expect_a_cancelled_sequence_leaves_its_slot(StepLoop& loop, int64_t rounds) {
  loop.add(make_request(1, 4, 50));
  loop.add(make_request(2, 4, 3));
  loop.step();
  loop.cancel(1);
  loop.cancel(99);
  EXPECT(!loop.idle());
  const Tokens tokens = run(loop);
  EXPECT(tokens.count(1) == 0 && tokens.at(2).size() == 3);
  for (int64_t id = 10; id < 10 + rounds; ++id) {
    loop.add(make_request(id, 4, 50));
    loop.step();
    loop.cancel(id);
  }
  EXPECT(loop.idle());
}

// The loop stays usable after each refusal.
inline void expect_requests_that_do_not_fit_are_refused(StepLoop& loop) {
  EXPECT_THROWS(loop.add(make_request(1, 0, 5)));
  EXPECT_THROWS(loop.add(make_request(1, 64, 5)));
  EXPECT_THROWS(loop.add(make_request(1, 4, 0)));
  Request missing = make_request(1, 4, 5);
  missing.prompts.pop_back();
  EXPECT_THROWS(loop.add(missing));
  Request outside = make_request(1, 4, 5);
  outside.prompts[2].tokens[1] = kVocab;
  EXPECT_THROWS(loop.add(outside));
  EXPECT(loop.idle());
  loop.add(make_request(2, 4, 5));
  EXPECT(run(loop).at(2).size() == 5);
}

}  // namespace dlf::testing
