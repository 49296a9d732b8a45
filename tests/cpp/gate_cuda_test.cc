// Compares steps whose closed gates hold the small models back with steps in which every model reads every token, as it
// does where a hook sees the logits: all results are bit-identical, and passes are saved.
#include <algorithm>
#include <functional>
#include <map>
#include <memory>
#include <numeric>
#include <tuple>
#include <utility>
#include <vector>

#include "check.h"
#include "cuda_testing.h"
#include "engine/cpu/step_loop.h"
#include "engine/cuda/step_loop.h"
#include "tiny_family.h"

namespace dlf {
namespace {

using testing::make_request;
using testing::mapped_plan;
using testing::needs_two_devices;
using testing::tiny_model;
using testing::tiny_models;
using testing::tiny_plan;

constexpr int64_t kContext = 64;
constexpr int kSmallModels = 3;  // of tiny_plan()
constexpr int kTogether = 8;     // rows that a pass reads bit-identical to single ones

const Gate kHalf = {GateKind::entropy, 3.85};  // open at about half of the tokens
const Gate kSeldom = {GateKind::top_prob, 0.04};
const Gate kOften = {GateKind::top_prob, 0.05};
const Gate kNever = {GateKind::entropy, 10.0};
const Gate kAlways = {GateKind::entropy, 0.0};

using Loop = std::unique_ptr<StepLoop>;

EngineOptions options(int64_t max_batch, bool graph = true, std::vector<int> devices = {0, 0, 0, 0}) {
  return {max_batch, kContext, 1, 0, 0, std::move(devices), graph};
}

// With given weights, a weight that is not 0 tells that the gate was open.
Request gated(int64_t id, int64_t tokens, const Gate& gate) {
  Request request = make_request(id, 3 + id, tokens);
  request.rule.combine = Combine::static_alpha;
  request.rule.weights = {{2.0, 0.4}, {2.0, -0.3}};
  request.rule.gate = gate;
  return request;
}

struct Token {
  int64_t token;
  float logprob;
  std::vector<double> alpha;
  double f, g;
  int64_t own_token;

  bool operator==(const Token&) const = default;
  bool open() const { return alpha.at(0) != 0.0; }
};

// Tokens by request, and the passes of small models in each step.
struct Found {
  std::map<int64_t, std::vector<Token>> tokens;
  std::vector<int> passes;

  int all_passes() const { return std::accumulate(passes.begin(), passes.end(), 0); }
};

bool look(const HookRows& rows) {
  EXPECT(rows.experts.at(0).defined());
  return true;
}

void step(StepLoop& loop, Found& found) {
  for (const StepOutput* output : loop.step({look})) {
    EXPECT(!output->failure);
    found.tokens[output->request].push_back(
        {output->token, output->logprob, output->alpha, output->f, output->g, output->own_token});
  }
  found.passes.push_back(loop.timings().small_passes);
}

Found decode(StepLoop& loop, const std::vector<Request>& requests) {
  Found found;
  for (const Request& request : requests) {
    loop.add(request);
  }
  while (!loop.idle()) {
    step(loop, found);
  }
  return found;
}

Found decode_seen(StepLoop& loop, Request request) {
  request.hook = true;
  return decode(loop, {std::move(request)});
}

// Passes of a request alone: the small models read before an open gate, and when a pass is full.
std::vector<int> expected_passes(const std::vector<Token>& tokens) {
  std::vector<int> passes;
  int unread = 0;
  for (const Token& token : tokens) {
    const bool reads = unread > 0 && (token.open() || unread == kTogether);
    passes.push_back(reads ? kSmallModels : 0);
    unread = (reads ? 0 : unread) + 1;
  }
  return passes;
}

void expect_closed_gates_to_save_passes(StepLoop& loop, const Gate& gate, int least, int most) {
  const Request request = gated(1, 40, gate);
  const Found all = decode_seen(loop, request);
  const Found found = decode(loop, {request});
  EXPECT(found.tokens == all.tokens);
  const std::vector<Token>& tokens = found.tokens.at(1);
  const auto open = std::count_if(tokens.begin(), tokens.end(), [](const Token& token) { return token.open(); });
  EXPECT(open >= least && open <= most);
  EXPECT(all.all_passes() == 40 * kSmallModels);
  EXPECT(found.passes == expected_passes(tokens));
}

void closed_gates_save_passes() {
  const Loop loop = cuda::make_step_loop(tiny_plan(), tiny_models(), options(1));
  for (const auto& [gate, least, most] :
       {std::tuple(kHalf, 12, 28), std::tuple(kSeldom, 3, 12), std::tuple(kOften, 28, 39), std::tuple(kNever, 0, 0),
        std::tuple(kAlways, 40, 40)}) {
    expect_closed_gates_to_save_passes(*loop, gate, least, most);
  }
  const Loop without_graph = cuda::make_step_loop(tiny_plan(), tiny_models(), options(1, false));
  expect_closed_gates_to_save_passes(*without_graph, kHalf, 12, 28);  // has every kind of step
}

// What the processor counts: it catches up when a gate opens only, in passes of one lane.
void passes_mean_the_same_on_the_processor() {
  const Loop cpu = cpu::make_step_loop(tiny_plan(), tiny_models(), {1, kContext, 1});
  const Loop cuda = cuda::make_step_loop(tiny_plan(), tiny_models(), options(1));
  for (const auto& [gate, passes] : {std::pair(kAlways, 6 * kSmallModels), std::pair(kNever, 0)}) {
    const Request request = gated(1, 7, gate);
    const Found expected = decode(*cpu, {request});
    EXPECT(expected.all_passes() == passes);
    EXPECT(decode(*cuda, {request}).all_passes() == expected.all_passes());
  }
}

std::vector<Request> several() {
  std::vector<Request> requests = {gated(1, 20, kHalf), gated(2, 6, kNever), gated(3, 14, kSeldom), gated(4, 9, kHalf)};
  requests[0].rule = {Combine::joint, Match::symmetric, {}, 1.2, 0.02, requests[0].rule.gate};
  requests[1].trace = true;
  requests[2].prompts[3].tokens.resize(2);  // lanes of different lengths
  requests[3].rule = {Combine::certainty, Match::symmetric, {}, 1.0, 0.0, requests[3].rule.gate};
  return requests;
}

// Requests that begin and end at different steps, as each finds it alone with every model reading every token.
void expect_company_to_change_nothing(const std::function<Loop()>& make) {
  const Loop alone = make();
  Found expected;
  for (const Request& request : several()) {
    expected.tokens.merge(decode_seen(*alone, request).tokens);
  }
  const Loop loop = make();
  Found found;
  int steps = 0;
  for (const Request& request : several()) {
    loop->add(request);
    for (int i = 0; i < 4; ++i, ++steps) {
      step(*loop, found);
    }
  }
  while (!loop->idle()) {
    step(*loop, found);
  }
  EXPECT(found.tokens == expected.tokens);
  EXPECT(found.all_passes() < static_cast<int>(found.passes.size()) * kSmallModels);
}

void company_changes_nothing() {
  for (const bool graph : {true, false}) {
    expect_company_to_change_nothing(
        [&] { return cuda::make_step_loop(tiny_plan(), tiny_models(), options(3, graph)); });
  }
}

void models_may_have_ids_of_their_own() {
  expect_company_to_change_nothing([] { return cuda::make_step_loop(mapped_plan(), tiny_models(), options(2)); });
}

void models_may_be_on_two_devices() {
  needs_two_devices();
  for (const FusionPlan& plan : {tiny_plan(), mapped_plan()}) {
    expect_company_to_change_nothing(
        [&] { return cuda::make_step_loop(plan, tiny_models(), options(2, true, {0, 1, 0, 1})); });
  }
}

// Beside requests without a gate, with one that reads experts or with a hook, every model reads every token.
void other_requests_let_every_model_read() {
  const Loop loop = cuda::make_step_loop(tiny_plan(), tiny_models(), options(2));
  const Request request = gated(1, 20, kHalf);
  const std::vector<Token> expected = decode_seen(*loop, request).tokens.at(1);
  for (const Gate& gate : {Gate{}, Gate{GateKind::disagree}, kHalf}) {
    Request other = gated(2, 8, gate);
    other.hook = gate.reads_large_alone();
    loop->add(request);
    Found found;
    for (int i = 0; i < 5; ++i) {
      step(*loop, found);
    }
    loop->add(other);
    while (!loop->idle()) {
      step(*loop, found);
    }
    EXPECT(found.tokens.at(1) == expected);
    EXPECT(std::all_of(found.passes.begin() + 6, found.passes.begin() + 12,
                       [](int passes) { return passes == kSmallModels; }));
    EXPECT(found.all_passes() < 20 * kSmallModels);
  }
}

// A request that fuses nothing needs no small model, and is not held up.
void the_large_model_may_decode_beside() {
  const Loop loop = cuda::make_step_loop(tiny_plan(), tiny_models(), options(2));
  const Request request = gated(1, 12, kNever);
  Request alone = make_request(2, 4, 12);
  alone.experts = {};
  alone.prompts = {alone.prompts[0], {}, {}, {}};
  Found expected = decode_seen(*loop, request);
  expected.tokens.merge(decode(*loop, {alone}).tokens);
  const Found found = decode(*loop, {request, alone});
  EXPECT(found.tokens == expected.tokens);
  EXPECT(found.all_passes() == 2 * kSmallModels);  // four tokens fill a pass of two slots
}

// Requests that are cancelled or stopped leave nothing to read; later ones in their slots find no trace of them.
void requests_may_end_behind_a_gate() {
  const Loop loop = cuda::make_step_loop(tiny_plan(), tiny_models(), options(2));
  const Request request = gated(1, 12, kHalf);
  const std::vector<Token> expected = decode_seen(*loop, request).tokens.at(1);
  for (const int steps : {2, 3, 5}) {
    Found found;
    loop->add(gated(5, 30, kNever));
    Request stopped = gated(6, 30, kNever);
    stopped.sampling.stop_token_ids = {expected[0].token, expected[1].token, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10};
    loop->add(stopped);
    for (int i = 0; i < steps; ++i) {
      step(*loop, found);
    }
    loop->cancel(5);
    loop->add(request);
    while (!loop->idle()) {
      step(*loop, found);
    }
    EXPECT(found.tokens.at(1) == expected);
  }
}

// The drafter is held back too, and catches up before it drafts; drafts that are asked for leave every model reading.
void drafts_change_nothing() {
  FusionPlan plan = tiny_plan();
  plan.lane_model.push_back(4);
  plan.drafter = 4;
  Models models = tiny_models();
  models.push_back(tiny_model(1));
  const Loop loop = cuda::make_step_loop(plan, models, options(2, true, {0, 0, 0, 0, 0}));
  Request request = gated(1, 30, kHalf);
  Request other = gated(2, 30, kSeldom);
  request.prompts.emplace_back();
  other.prompts.emplace_back();
  const std::vector<Token> expected = decode_seen(*loop, request).tokens.at(1);
  for (const Speculation& speculation : {Speculation{3, kAutoDrafter, false}, Speculation{3, kPromptLookup, true},
                                         Speculation{3, kAutoDrafter, true}, Speculation{2, 1, true}}) {
    for (Request* each : {&request, &other}) {
      each->speculation = speculation;
      each->prompts.back() = speculation.drafter == kAutoDrafter ? each->prompts[0] : Prompt();
    }
    const Found alone = decode(*loop, {request});
    EXPECT(alone.tokens.at(1) == expected);
    const bool reads = !speculation.adaptive;
    EXPECT((alone.all_passes() >= static_cast<int>(alone.passes.size()) * (kSmallModels + 1)) == reads);
    EXPECT(decode(*loop, {other, request}).tokens.at(1) == expected);
  }
}

// Scores read every token at once, beside sequences that hold the small models back.
void scores_are_those_of_a_loop_at_rest() {
  const Loop loop = cuda::make_step_loop(tiny_plan(), tiny_models(), options(2));
  ScoreRequest score = testing::score_request(1);
  score.rule = gated(1, 1, kHalf).rule;
  const std::vector<Score> expected = loop->score(score, [] {});
  const Request request = gated(1, 12, kHalf);
  const std::vector<Token> tokens = decode_seen(*loop, request).tokens.at(1);
  Found found;
  loop->add(request);
  while (!loop->idle()) {
    step(*loop, found);
    testing::expect_scores_near(loop->score(score, [] {}), expected, 0);
  }
  EXPECT(found.tokens.at(1) == tokens);
}

}  // namespace
}  // namespace dlf

int main(int argc, char** argv) {
  return dlf::testing::run_cuda(
      argc, argv,
      {
          {"closed gates save passes", dlf::closed_gates_save_passes, true},
          {"passes mean the same on the processor", dlf::passes_mean_the_same_on_the_processor, true},
          {"company changes nothing", dlf::company_changes_nothing},
          {"models may have ids of their own", dlf::models_may_have_ids_of_their_own},
          {"models may be on two devices", dlf::models_may_be_on_two_devices, true},
          {"other requests let every model read", dlf::other_requests_let_every_model_read},
          {"the large model may decode beside", dlf::the_large_model_may_decode_beside, true},
          {"requests may end behind a gate", dlf::requests_may_end_behind_a_gate, true},
          {"drafts change nothing", dlf::drafts_change_nothing},
          {"scores are those of a loop at rest", dlf::scores_are_those_of_a_loop_at_rest, true},
      });
}
