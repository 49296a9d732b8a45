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
#include "model/block_store.h"
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

// What a request was given.
struct Given {
  int64_t token;
  float logprob;
  std::vector<double> alpha;
  double f, g;
  std::vector<int64_t> top_tokens;
  FinishReason finish;

  bool operator==(const Given&) const = default;
};
using Outputs = std::map<int64_t, std::vector<Given>>;

inline void step(StepLoop& loop, Outputs& outputs) {
  for (const StepOutput* one : loop.step()) {
    EXPECT(!one->failure);
    outputs[one->request].push_back(
        {one->token, one->logprob, one->alpha, one->f, one->g, one->top_tokens, one->finish});
  }
}

inline Outputs run_all(StepLoop& loop, const std::vector<Request>& requests) {
  for (const Request& request : requests) {
    loop.add(request);
  }
  Outputs outputs;
  while (!loop.idle()) {
    step(loop, outputs);
  }
  return outputs;
}

// Requests with a common beginning, with a cache for all of them, for some and for none. `make` makes a loop with so
// many bytes for prefixes and a context of 128; `plain` has no cache.
inline void expect_the_prefix_cache_to_change_nothing(
    StepLoop& plain, const std::function<std::unique_ptr<StepLoop>(int64_t bytes)>& make) {
  const auto decode = [](StepLoop& loop, bool hits) {
    for (int64_t id = 0; id < 4; ++id) {
      loop.add(shared_request(id % 3, 90 + 6 * (id % 2), 3 + 2 * id));
    }
    Tokens tokens;
    int64_t cached = 0;
    while (!loop.idle()) {
      for (const StepOutput* output : loop.step()) {
        tokens[output->request].push_back(output->token);
        cached += output->cached_tokens;
      }
    }
    EXPECT((cached > 0) == hits);
    return tokens;
  };
  const Tokens expected = decode(plain, false);
  for (const int64_t bytes : {0, 50000, 1 << 24}) {
    EXPECT(decode(*make(bytes), bytes > 0) == expected);
  }
}

// Bytes of `tokens` positions of every lane of the tiny family.
inline int64_t tiny_cache_bytes(int64_t tokens, int64_t lanes = 4) {
  const std::shared_ptr<const Weights> model = tiny_model(1);
  return lanes * tokens / ops::kCacheBlock * block_bytes(model->spec(), model->dtype());
}

// Requests of up to 250 tokens that grow differently fast, with all that a sequence carries from step to step: drafts,
// gates, penalties, beginnings that others share. `lanes`: of the plan.
inline std::vector<Request> growing_requests(int64_t count, int64_t lanes = 4) {
  std::vector<Request> requests;
  for (int64_t id = 0; id < count; ++id) {
    Request request = id % 3 == 0 ? shared_request(id, 90, 3 + id) : make_request(id, 3 + 29 * id % 120, 0);
    request.max_new_tokens = 20 + 37 * id % 110;
    request.rule = rule_of(id % 4 == 1 ? 34 : id);  // 34 has a gate
    request.sampling.frequency_penalty = 0.1 * static_cast<double>(id % 2);
    request.sampling.bad_words = {{3, 4}};
    if (id % 5 == 2) {
      request.speculation = {3, id % 2 == 0 ? 3 : kPromptLookup, false};
    } else if (id % 5 == 4) {
      request.speculation = {2, kAutoDrafter, false};
    }
    const bool has_drafter = lanes > 4 && request.speculation.max_draft > 0;
    request.speculation.drafter = has_drafter ? kAutoDrafter : request.speculation.drafter;
    request.prompts.resize(lanes, has_drafter ? request.prompts[0] : Prompt());
    requests.push_back(std::move(request));
  }
  return requests;
}

// Requests get the same results with so little memory that some of them are put back, whatever their priorities and
// whatever else is scored or cancelled meanwhile. make(bytes) returns a loop with as many bytes of KV caches. `sizes`:
// tokens of each lane.
inline void expect_put_back_requests_to_go_on(const std::function<std::unique_ptr<StepLoop>(int64_t)>& make,
                                              int64_t count, int64_t lanes = 4,
                                              const std::vector<int64_t>& sizes = {256, 320, 512}) {
  std::vector<Request> requests = growing_requests(count, lanes);
  const std::unique_ptr<StepLoop> plenty = make(0);
  const Outputs expected = run_all(*plenty, requests);
  EXPECT(plenty->put_back() == 0 && static_cast<int64_t>(expected.size()) == count);
  std::mt19937 random(5);
  int64_t put_back = 0;
  for (const int64_t tokens : sizes) {
    const std::unique_ptr<StepLoop> loop = make(tiny_cache_bytes(tokens, lanes));
    EXPECT(run_all(*loop, requests) == expected);
    for (Request& request : requests) {
      request.priority = static_cast<int64_t>(random() % 3);
    }
    EXPECT(run_all(*loop, requests) == expected);  // some prompts are in the prefix cache now
    // Now in random order, some come late and some leave.
    std::vector<Request> shuffled = requests;
    std::shuffle(shuffled.begin(), shuffled.end(), random);
    Outputs outputs;
    std::set<int64_t> gone;
    for (int64_t steps = 0; !loop->idle() || !shuffled.empty(); ++steps) {
      if (!shuffled.empty() && random() % 4 == 0) {
        loop->add(std::move(shuffled.back()));
        shuffled.pop_back();
      }
      if (random() % 40 == 0) {
        gone.insert(static_cast<int64_t>(random() % count));
        loop->cancel(*gone.rbegin());
      }
      step(*loop, outputs);
    }
    for (const auto& [id, given] : expected) {
      EXPECT(gone.count(id) > 0 || outputs[id] == given);
    }
    put_back += loop->put_back();
  }
  EXPECT(put_back > 0);
}

}  // namespace dlf::testing
