// Compares the step loop on a GPU, or an emulated one, with the one on the CPU, in float32: the tokens are the same.
#include <ATen/record_function.h>
#include <c10/core/Allocator.h>
#include <c10/util/ThreadLocalDebugInfo.h>

#include <cmath>
#include <mutex>
#include <set>
#include <string_view>
#include <tuple>
#include <utility>

#include "check.h"
#include "cuda_testing.h"
#include "engine/cpu/step_loop.h"
#include "engine/cuda/step_loop.h"
#include "tiny_family.h"

namespace dlf {
namespace {

using testing::kVocab;
using testing::make_request;
using testing::needs_two_devices;
using testing::run;
using testing::tiny_model;
using testing::tiny_models;
using testing::tiny_plan;
using testing::Tokens;

constexpr int64_t kContext = 64;

using Devices = std::vector<int>;  // one for each model
const Devices kOne = {0, 0, 0, 0, 0};
const Devices kTwo = {0, 1, 0, 1, 1};

EngineOptions options(int64_t max_batch, bool graph = true, Devices devices = {0, 0, 0, 0}) {
  return {max_batch, kContext, 1, 0, 0, std::move(devices), graph};
}

EngineOptions with_prefix_cache(EngineOptions options, int64_t bytes) {
  options.prefix_cache_bytes = bytes;
  return options;
}

void expect_near(const StepOutput& output, const StepOutput& expected) {
  EXPECT(std::abs(output.logprob - expected.logprob) < 1e-3);
  EXPECT(std::abs(output.f - expected.f) < 1e-3 && std::abs(output.g - expected.g) < 1e-3);
  for (size_t t = 0; t < expected.alpha.size(); ++t) {
    EXPECT(std::abs(output.alpha[t] - expected.alpha[t]) < 3e-3);
  }
  EXPECT(output.top_tokens == expected.top_tokens);
}

void tokens_are_those_of_the_processor() {
  for (const Combine combine :
       {Combine::select, Combine::centroid, Combine::joint, Combine::grid, Combine::jsd, Combine::certainty}) {
    const auto cpu = cpu::make_step_loop(tiny_plan(), tiny_models(), {1, kContext, 1});
    const auto cuda = cuda::make_step_loop(tiny_plan(), tiny_models(), options(1));
    for (const double temperature : {0.0, 1.0}) {
      const Request request = make_request(1, 5, 6, temperature, combine);
      cpu->add(request);
      cuda->add(request);
      while (!cpu->idle()) {
        const StepOutput expected = *cpu->step().at(0);
        EXPECT(!cuda->idle());
        const auto& outputs = cuda->step();
        if (outputs.size() != 1) {
          EXPECT(outputs.size() == 1);
          return;
        }
        EXPECT(outputs[0]->token == expected.token && outputs[0]->finish == expected.finish);
        expect_near(*outputs[0], expected);
      }
      EXPECT(cuda->idle());
    }
  }
}

Tokens tokens_of_many(StepLoop& loop, Combine combine = Combine::select) {
  for (int64_t id = 0; id < 5; ++id) {
    loop.add(make_request(id, 1 + 5 * id, 4 + 2 * id, id % 2 == 0 ? 1.0 : 0.0, combine));
  }
  return run(loop);
}

void batches_and_graphs_change_nothing() {
  const auto cpu = cpu::make_step_loop(tiny_plan(), tiny_models(), {3, kContext, 1});
  const Tokens expected = tokens_of_many(*cpu);
  for (const bool graph : {true, false}) {
    const auto loop = cuda::make_step_loop(tiny_plan(), tiny_models(), options(3, graph));
    EXPECT(tokens_of_many(*loop) == expected);
  }
}

// A kind of step that has run is captured in a gap between requests, or after several runs.
void graphs_are_captured_when_nobody_waits() {
  const auto loop = cuda::make_step_loop(tiny_plan(), tiny_models(), options(1));
  const auto without = cuda::make_step_loop(tiny_plan(), tiny_models(), options(1, false));
  const auto decode = [](StepLoop& loop, int64_t max_new_tokens, const Speculation& speculation) {
    Request request = make_request(1, 5, max_new_tokens);
    request.speculation = speculation;
    loop.add(std::move(request));
    std::vector<int64_t> tokens;
    int launched_whole = 0;
    int steps = 0;
    while (!loop.idle()) {
      EXPECT(!loop.prepare());  // a request waits
      for (const StepOutput* output : loop.step()) {
        tokens.push_back(output->token);
      }
      ++steps;
      launched_whole += loop.timings().graph ? 1 : 0;
      EXPECT(loop.timings().drafted <= speculation.max_draft);
    }
    return std::tuple(tokens, launched_whole, steps);
  };
  const auto prepared = [](StepLoop& loop) {
    int count = 0;
    while (loop.prepare()) {
      ++count;
    }
    return count;
  };
  EXPECT(prepared(*loop) == 0);  // no kind of step has run yet
  const Speculation three = {3, 3, false};
  for (const auto& [max_new_tokens, speculation] : {std::pair(3, Speculation()), std::pair(9, three)}) {
    const auto [tokens, none, some] = decode(*loop, max_new_tokens, speculation);
    EXPECT(none < some);  // its last step is a plain one, which has a graph by then
    EXPECT(prepared(*loop) > 0);
    const auto [again, all, steps] = decode(*loop, max_new_tokens, speculation);
    EXPECT(all == steps && steps == some && again == tokens);
    const auto [plainly, never, as_many] = decode(*without, max_new_tokens, speculation);
    EXPECT(never == 0 && as_many == steps && plainly == tokens);
  }
  EXPECT(prepared(*without) == 0);
  const auto busy = cuda::make_step_loop(tiny_plan(), tiny_models(), options(1));
  const auto [tokens, launched_whole, steps] = decode(*busy, 20, {});
  EXPECT(launched_whole > 10 && launched_whole < steps);
  EXPECT(prepared(*busy) == 0);
}

// With so little memory that requests are put back.
void expect_little_memory_to_change_nothing(const FusionPlan& plan, const Models& models, const Devices& devices,
                                            int64_t prefix_cache_bytes, const Adapters& adapters = {}) {
  const auto make = [&](int64_t kv_cache_bytes) {
    EngineOptions some = with_prefix_cache(options(2, prefix_cache_bytes > 0, devices), prefix_cache_bytes);
    some.max_context = 128;
    some.kv_cache_bytes = kv_cache_bytes;
    return cuda::make_step_loop(plan, models, some, adapters);
  };
  std::vector<Request> requests;
  for (int64_t id = 0; id < 2; ++id) {  // each begins in one block and ends in two; there are three
    Request& request = requests.emplace_back(make_request(id, 50, 24));
    request.sampling.frequency_penalty = 0.1;
    request.sampling.bad_words = {{3, 4}};
    // More rows than eight are not exact.
    request.speculation = {adapters.empty() ? 2 * id : 0, plan.drafter >= 0 ? kAutoDrafter : kPromptLookup, false};
    request.prompts.resize(plan.lanes());
    if (plan.drafter >= 0 && id == 1) {
      request.prompts[plan.drafter] = request.prompts[0];
    }
  }
  const testing::Outputs expected = testing::run_all(*make(0), requests);
  const auto loop = make(testing::tiny_cache_bytes(192, plan.lanes()));
  EXPECT(testing::run_all(*loop, requests) == expected && loop->put_back() > 0);
}

void requests_that_are_put_back_go_on() {
  expect_little_memory_to_change_nothing(testing::mapped_plan(), tiny_models(), kOne, 1 << 20);
}

void so_do_those_on_two_devices() {
  needs_two_devices();
  expect_little_memory_to_change_nothing(tiny_plan(), tiny_models(), kTwo, 1 << 20);
}

void so_do_those_with_adapters_and_a_drafter() {
  FusionPlan plan = tiny_plan();
  plan.lane_model = {0, 1, 1, 1};
  plan.lane_adapter = {-1, 0, -1, 1};
  const Adapters adapters = {{}, {testing::tiny_adapter(5, 3, true), testing::tiny_adapter(6, 7, false)}};
  expect_little_memory_to_change_nothing(plan, {tiny_model(1), tiny_model(2)}, {0, 0}, 0, adapters);
  plan = tiny_plan();
  plan.lane_model.push_back(4);
  plan.drafter = 4;
  Models models = tiny_models();
  models.push_back(tiny_model(9));
  expect_little_memory_to_change_nothing(plan, models, kOne, 0);
}

// Records the numbers of rows in the matrix library's products, as long as it exists.
class LibraryRows {
 public:
  LibraryRows() : handle_(at::addGlobalCallback(at::RecordFunctionCallback(&note).needsInputs(true))) {
    rows().clear();
  }
  ~LibraryRows() { at::removeCallback(handle_); }
  LibraryRows(const LibraryRows&) = delete;
  LibraryRows& operator=(const LibraryRows&) = delete;

  static std::set<int64_t> seen() {
    const std::lock_guard lock(mutex());
    return rows();
  }

 private:
  static std::unique_ptr<at::ObserverContext> note(const at::RecordFunction& function) {
    if (std::string_view(function.name()) == "aten::mm" && !function.inputs().empty()) {
      const std::lock_guard lock(mutex());
      rows().insert(function.inputs()[0].toTensor().size(0));
    }
    return nullptr;
  }
  static std::set<int64_t>& rows() {
    static std::set<int64_t> rows;
    return rows;
  }
  static std::mutex& mutex() {
    static std::mutex mutex;
    return mutex;
  }

  at::CallbackHandle handle_;
};

// The library chooses a kernel by the number of rows and loads it at its first use, and a request would wait for that.
void no_prompt_has_a_size_that_the_library_has_not_met() {
#ifndef NDEBUG
  throw testing::Skip("torch shows an operator's inputs in release builds only");
#endif
  const LibraryRows library;
  const auto loop = cuda::make_step_loop(tiny_plan(), tiny_models(), options(1));
  const std::set<int64_t> met = LibraryRows::seen();
  EXPECT(!met.empty());
  for (const int64_t length : {9, 15, 16, 17, 33, 47, 58}) {
    loop->add(make_request(length, length, 2));
    run(*loop);
  }
  EXPECT(LibraryRows::seen() == met);
}

// Drafts change no token: in batches, and with sequences that draft nothing or have another drafter.
void expect_drafts_to_change_nothing(const Devices& devices, const std::vector<Speculation>& speculations) {
  const auto decode = [](StepLoop& loop, const Speculation& speculation) {
    for (int64_t id = 0; id < 6; ++id) {
      Request request = make_request(id, 1 + 5 * id, 9, id % 3 == 0 ? 0.0 : 1.0);
      request.speculation = id == 4 ? Speculation() : speculation;
      if (id == 5) {
        request.experts = {1};
        request.prompts[1] = {};
        request.speculation.drafter = std::min(request.speculation.drafter, kAutoDrafter);
      }
      loop.add(std::move(request));
    }
    return run(loop);
  };
  const auto cpu = cpu::make_step_loop(tiny_plan(), tiny_models(), {3, kContext, 1});
  const Tokens expected = decode(*cpu, {});
  bool graph = false;
  for (const Speculation& speculation : speculations) {
    graph = !graph;
    const auto loop = cuda::make_step_loop(tiny_plan(), tiny_models(), options(3, graph, devices));
    EXPECT(decode(*loop, speculation) == expected);
  }
}

void drafts_change_nothing() {
  expect_drafts_to_change_nothing(kOne, {{4, kAutoDrafter, false},
                                         {3, 3, false},
                                         {kMaxDraft, 2, false},
                                         {5, kPromptLookup, false},
                                         {8, kAutoDrafter, true}});
}

// Drafted tokens of a small batch have rows that are a larger batch's slots, one of which reads its prompt.
void drafts_leave_nothing_in_slots_that_read_a_prompt() {
  const auto found = [](StepLoop& loop, bool alone) {
    Request drafting = make_request(1, 5, 12);
    drafting.speculation = {3, 3, false};
    if (!alone) {
      loop.add(drafting);
      for (int step = 0; step < 3; ++step) {
        loop.step();
      }
    }
    Request reading = make_request(2, 40, 6);
    for (Prompt& prompt : reading.prompts) {
      prompt.breaks = {20, 24, 28, 32, 36};
    }
    loop.add(reading);
    if (!alone) {
      loop.add(make_request(3, 4, 12));
    }
    std::vector<std::pair<int64_t, float>> outputs;
    while (!loop.idle()) {
      for (const StepOutput* output : loop.step()) {
        if (output->request == 2) {
          outputs.emplace_back(output->token, output->logprob);
        }
      }
    }
    return outputs;
  };
  EngineOptions one_chunk = options(4);
  one_chunk.prompt_budget = 1;
  const auto loop = cuda::make_step_loop(tiny_plan(), tiny_models(), one_chunk);
  const auto expected = found(*loop, true);
  const auto beside = found(*loop, false);
  EXPECT(expected.size() == 6 && beside.size() == 6);
  for (size_t i = 0; i < std::min(expected.size(), beside.size()); ++i) {
    EXPECT(beside[i].first == expected[i].first && std::abs(beside[i].second - expected[i].second) < 1e-4);
  }
}

void drafts_on_two_devices_change_nothing() {
  needs_two_devices();
  expect_drafts_to_change_nothing(kTwo, {{4, kAutoDrafter, false}, {3, 3, false}});
}

void requests_may_have_rules_of_their_own() {
  bool graph = true;
  testing::expect_rules_to_keep_apart([&] {
    graph = !graph;
    return cuda::make_step_loop(tiny_plan(), tiny_models(), options(4, graph));
  });
}

// Rules that need the same kernels are one kind of step, with one graph. Three steps of a kind are too few for a
// capture while requests wait.
void rules_that_share_a_kernel_share_a_graph() {
  const auto loop = cuda::make_step_loop(tiny_plan(), tiny_models(), options(2));
  const auto decode = [&](std::vector<Combine> combines) {
    for (size_t i = 0; i < combines.size(); ++i) {
      loop->add(make_request(static_cast<int64_t>(i), 5, 3, 1.0, combines[i]));
    }
    run(*loop);
    int captured = 0;
    while (loop->prepare()) {
      ++captured;
    }
    return captured;
  };
  EXPECT(decode({Combine::select, Combine::select}) > 0);
  EXPECT(decode({Combine::centroid, Combine::grid}) == 0);
  EXPECT(decode({Combine::joint, Combine::joint}) > 0);
  EXPECT(decode({Combine::joint, Combine::select}) > 0);
  EXPECT(decode({Combine::grid, Combine::joint}) == 0);
  EXPECT(decode({Combine::jsd, Combine::select}) > 0);
  EXPECT(decode({Combine::jsd, Combine::jsd}) == 0);
}

// The large model drafts for itself, with small expert weights: most drafts are right, and so are their results.
void expect_right_drafts_to_be_taken(const Devices& devices, int64_t id) {
  FusionPlan plan;
  plan.lane_model = {0, 1, 2, 3, 2};
  plan.experts = {{1, 2}, {3, 2}};
  plan.vocab = kVocab;
  plan.drafter = 4;
  plan.lane_model[4] = 4;
  Models models = tiny_models();
  models.push_back(tiny_model(1));
  for (const double temperature : {0.0, 1.0}) {
    const auto cpu = cpu::make_step_loop(plan, models, {1, kContext, 1});
    const auto loop = cuda::make_step_loop(plan, models, options(1, true, devices));
    Request request = make_request(id, 5, 40, temperature);
    request.rule.weights = {{2.0, 0.1}, {2.0, -0.05}};
    request.sampling.frequency_penalty = 0.2;
    request.sampling.bad_words = {{3, 4}, {9}};
    request.sampling.min_new_tokens = 10;
    request.prompts.emplace_back();
    cpu->add(request);
    request.prompts[4] = request.prompts[0];
    request.speculation = {7, kAutoDrafter, false};
    loop->add(request);
    int64_t steps = 0;
    int64_t tokens = 0;
    while (!loop->idle()) {
      int64_t first = 1;
      for (const StepOutput* output : loop->step()) {
        const StepOutput theirs = *cpu->step().at(0);
        EXPECT(output->token == theirs.token && output->finish == theirs.finish);
        EXPECT((output->drafted >= 0) == (first == 1));
        expect_near(*output, theirs);
        steps += first;
        first = 0;
        ++tokens;
      }
    }
    EXPECT(cpu->idle() && tokens == 40);
    EXPECT(steps <= 16);
  }
}

void drafts_that_are_right_are_taken() {
  expect_right_drafts_to_be_taken(kOne, 1);
  expect_right_drafts_to_be_taken(kOne, 2);
}

void a_drafter_may_be_on_another_device() {
  needs_two_devices();
  expect_right_drafts_to_be_taken({0, 0, 0, 0, 1}, 1);
}

// A drafter with a longer prompt than the others stops drafting where its context ends; the sequence goes on.
void a_drafter_may_run_out_of_context() {
  FusionPlan plan;
  plan.lane_model = {0, 1};
  plan.drafter = 1;
  plan.vocab = kVocab;
  const Models models = {tiny_model(1), tiny_model(1)};
  const auto cpu = cpu::make_step_loop(plan, models, {1, kContext, 1});
  const auto loop = cuda::make_step_loop(plan, models, options(1, true, {0, 0}));
  Request request = make_request(2, 4, 40);
  request.prompts = {request.prompts[0], {}};
  request.experts = {};
  cpu->add(request);
  const Tokens expected = run(*cpu);
  EXPECT(expected.at(2).size() == 40);
  request.prompts[1] = make_request(2, 55, 40).prompts[0];
  request.speculation = {4, kAutoDrafter, false};
  for (StepLoop* drafting : {cpu.get(), loop.get()}) {
    drafting->add(request);
    EXPECT(run(*drafting) == expected);
  }
}

// A stop token and the end of the context lie inside drafts.
void drafts_end_where_the_sequence_does() {
  FusionPlan plan;
  plan.lane_model = {0, 1};
  plan.drafter = 1;
  plan.vocab = kVocab;
  const Models models = {tiny_model(1), tiny_model(1)};
  const auto request = [](int64_t prompt, int64_t max_new_tokens) {
    Request request = make_request(2, prompt, max_new_tokens);
    request.prompts.resize(2);
    request.experts = {};
    request.speculation = {7, 1, false};
    return request;
  };
  const auto loop = cuda::make_step_loop(plan, models, options(2, true, {0, 0}));
  loop->add(request(60, 1000));
  EXPECT(run(*loop).at(2).size() == 5);
  loop->add(request(4, 20));
  const std::vector<int64_t> free = run(*loop).at(2);
  EXPECT(free.size() == 20);
  for (const size_t at : {3, 8, 15}) {
    Request stopping = request(4, 20);
    stopping.sampling.stop_token_ids = {free[at]};
    loop->add(stopping);
    const auto first = std::find(free.begin(), free.end(), free[at]) - free.begin();
    EXPECT(run(*loop).at(2).size() == static_cast<size_t>(first) + 1);
  }
}

void models_may_be_on_two_devices() {
  needs_two_devices();
  const auto cpu = cpu::make_step_loop(tiny_plan(), tiny_models(), {2, kContext, 1});
  EngineOptions two = options(2);
  two.devices = {0, 1, 1, 1};
  const auto loop = cuda::make_step_loop(tiny_plan(), tiny_models(), two);
  EXPECT(tokens_of_many(*loop, Combine::joint) == tokens_of_many(*cpu, Combine::joint));
}

void the_large_model_decodes_alone() {
  FusionPlan plan;
  plan.lane_model = {0};
  plan.vocab = kVocab;
  const auto cpu = cpu::make_step_loop(plan, {tiny_model(1)}, {2, kContext, 1});
  const auto loop = cuda::make_step_loop(plan, {tiny_model(1)}, options(2, true, {0}));
  Request request = make_request(1, 7, 8);
  request.prompts.resize(1);
  request.experts = {};
  cpu->add(request);
  loop->add(request);
  EXPECT(run(*loop) == run(*cpu));
}

// Four lanes on two models: one expert shares its base's model, the other the large model.
void lanes_share_a_model() {
  FusionPlan plan;
  plan.lane_model = {0, 1, 1, 0};
  plan.experts = {{1, 2}, {3, 2}};
  plan.vocab = kVocab;
  const Models models = {tiny_model(1), tiny_model(2)};
  const auto cpu = cpu::make_step_loop(plan, models, {2, kContext, 1});
  const auto loop = cuda::make_step_loop(plan, models, options(2, true, {0, 0}));
  for (StepLoop* each : std::initializer_list<StepLoop*>{cpu.get(), loop.get()}) {
    for (const int64_t id : {1, 2, 3}) {
      Request request = make_request(id, 4 + id, 5);
      request.prompts[1].tokens.push_back(id);  // lanes of different lengths
      request.prompts[3].tokens.resize(2);
      each->add(request);
    }
  }
  EXPECT(run(*loop) == run(*cpu));
}

// An expert without a base, and one whose base is the large model, decoded with drafts and scored.
void experts_may_lack_a_base() {
  FusionPlan plan;
  plan.lane_model = {0, 1, 2};
  plan.experts = {{1, kNoLane}, {2, 0}};
  plan.vocab = kVocab;
  const Models models = {tiny_model(1), tiny_model(2), tiny_model(3)};
  const auto cpu = cpu::make_step_loop(plan, models, {2, kContext, 1});
  const auto loop = cuda::make_step_loop(plan, models, options(2, true, {0, 0, 0}));
  for (const int64_t id : {1, 30, 31, 35, 36}) {
    Request request = make_request(id, 5, 6);
    request.prompts.resize(3);
    request.rule = testing::rule_of(id);
    cpu->add(request);
    request.speculation = {id % 2 == 0 ? 3 : 0, 1, false};
    loop->add(request);
  }
  EXPECT(run(*loop) == run(*cpu));
  ScoreRequest request = testing::score_request(2);
  request.prompts.resize(3);
  request.rule.combine = Combine::centroid;
  testing::expect_scores_near(loop->score(request, [] {}), cpu->score(request, [] {}), 3e-3);
}

// Lanes with two adapters and with none share a model, in every batch; some requests leave lanes out.
void expect_adapters_to_be_those_of_the_processor(const Devices& devices) {
  FusionPlan plan;
  plan.lane_model = {0, 1, 1, 1};
  plan.lane_adapter = {-1, 0, -1, 1};
  plan.experts = {{1, 2}, {3, 2}};
  plan.vocab = kVocab;
  const Models models = {tiny_model(1), tiny_model(2)};
  const Adapters adapters = {{}, {testing::tiny_adapter(5, 3, true), testing::tiny_adapter(6, 7, false)}};
  const auto cpu = cpu::make_step_loop(plan, models, {2, kContext, 1}, adapters);
  const auto plain = cpu::make_step_loop(plan, models, {2, kContext, 1}, {{}, {adapters[1][1], adapters[1][0]}});
  const auto with_graph =
      cuda::make_step_loop(plan, models, with_prefix_cache(options(2, true, devices), 1 << 20), adapters);
  const auto without = cuda::make_step_loop(plan, models, options(3, false, devices), adapters);
  for (StepLoop* loop : std::initializer_list<StepLoop*>{cpu.get(), plain.get(), with_graph.get(), without.get()}) {
    for (const int64_t id : {1, 2, 3}) {
      Request request = make_request(id, 4 + id, 6, 1.0, Combine::centroid);
      if (id == 2) {
        request.experts = {1};
        request.prompts[1].tokens.clear();
      }
      loop->add(request);
    }
  }
  const Tokens expected = run(*cpu);
  EXPECT(run(*with_graph) == expected);
  EXPECT(run(*without) == expected);
  EXPECT(run(*plain) != expected);
}

void adapters_are_those_of_the_processor() { expect_adapters_to_be_those_of_the_processor(kOne); }

void adapters_may_be_on_two_devices() {
  needs_two_devices();
  expect_adapters_to_be_those_of_the_processor(kTwo);
}

void expect_the_prefix_cache_to_change_nothing(const Devices& devices) {
  const auto cpu = cpu::make_step_loop(tiny_plan(), tiny_models(), {2, 128, 1});
  testing::expect_the_prefix_cache_to_change_nothing(*cpu, [&](int64_t bytes) {
    return cuda::make_step_loop(tiny_plan(), tiny_models(), {2, 128, 1, bytes, 0, devices});
  });
}

void the_prefix_cache_changes_nothing() { expect_the_prefix_cache_to_change_nothing(kOne); }

void prefix_caches_of_two_devices_change_nothing() {
  needs_two_devices();
  expect_the_prefix_cache_to_change_nothing(kTwo);
}

void a_cancelled_sequence_leaves_its_slot() {
  const auto loop = cuda::make_step_loop(tiny_plan(), tiny_models(), options(1));
  testing::expect_a_cancelled_sequence_leaves_its_slot(*loop, 4);
}

void stop_tokens_and_the_context_end_a_sequence() {
  const auto loop = cuda::make_step_loop(tiny_plan(), tiny_models(), options(2));
  loop->add(make_request(1, 60, 1000));
  EXPECT(run(*loop).at(1).size() == 5);
  loop->add(make_request(2, 4, 8));
  const std::vector<int64_t> free = run(*loop).at(2);
  Request request = make_request(3, 4, 8);
  request.sampling.seed = 2;
  request.prompts = make_request(2, 4, 8).prompts;
  request.sampling.stop_token_ids = {free[5]};
  loop->add(request);
  const auto first = std::find(free.begin(), free.end(), free[5]) - free.begin();
  EXPECT(run(*loop).at(3).size() == static_cast<size_t>(first) + 1);
}

void logits_that_are_not_numbers_end_only_their_sequence() {
  const auto broken = [] {
    auto weights = std::make_shared<Weights>(*tiny_model(2));
    weights->embedding.tensors.data.mutable_data_ptr<float>()[11 * 16] =
        NAN;  // token 11, and, as the head is tied, its logit
    return weights;
  }();
  FusionPlan plan;
  plan.lane_model = {0, 1, 2};
  plan.experts = {{1, 2}};
  plan.vocab = kVocab;
  const auto loop = cuda::make_step_loop(plan, {tiny_model(1), broken, tiny_model(3)}, options(2, true, {0, 0, 0}));
  Request request = make_request(1, 3, 5);
  request.prompts.resize(3);
  request.experts = {0};
  loop->add(request);
  const auto& outputs = loop->step();
  EXPECT(outputs.size() == 1 && outputs[0]->finish == FinishReason::error);
  EXPECT(outputs.at(0)->failure.kind == FailureKind::bad_logits);
  EXPECT(outputs.at(0)->failure.message.find("expert 0 at step 0") != std::string::npos);
  EXPECT(loop->idle());
}

// The most experts, each with a base of its own, and a drafter, each on a model of its own.
void the_largest_plan_runs() {
  FusionPlan plan;
  plan.vocab = kVocab;
  for (int64_t lane = 0; lane < kMostLanes; ++lane) {
    plan.lane_model.push_back(lane);
  }
  Models models;
  Request request = make_request(1, 4, 12, 0.0, Combine::centroid);
  request.experts.clear();
  for (int64_t t = 0; t < kMaxExperts; ++t) {
    plan.experts.push_back({1 + 2 * t, 2 + 2 * t});
    request.experts.push_back(static_cast<int>(t));
  }
  plan.drafter = kMostLanes - 1;
  for (uint32_t seed = 1; seed <= kMostLanes; ++seed) {
    models.push_back(tiny_model(seed));
  }
  request.prompts.resize(kMostLanes, request.prompts[0]);
  request.speculation = {3, kAutoDrafter, false};
  const auto cpu = cpu::make_step_loop(plan, models, {2, kContext, 1});
  const auto cuda = cuda::make_step_loop(plan, models, options(2, true, Devices(kMostLanes, 0)));
  cpu->add(request);
  cuda->add(request);
  const Tokens expected = run(*cpu);
  EXPECT(expected.at(1).size() == 12);
  EXPECT(run(*cuda) == expected);
}

void what_does_not_fit_is_refused() {
  EXPECT_THROWS(cuda::make_step_loop(tiny_plan(), tiny_models(), options(1, true, {0, 0, 0, 99})));
  EXPECT_THROWS(cuda::make_step_loop(tiny_plan(), tiny_models(), {256, 1 << 28, 1, 0, 0, {0, 0, 0, 0}}));
  const auto loop = cuda::make_step_loop(tiny_plan(), tiny_models(), options(1));
  Request many = make_request(1, 4, 5);
  many.sampling.stop_token_ids.assign(257, 1);
  EXPECT_THROWS(loop->add(many));
  testing::expect_requests_that_do_not_fit_are_refused(*loop);
}

// Bytes of device memory that this thread holds; with emulated devices, host memory, the pinned included.
class Taken : public c10::MemoryReportingInfoBase {
 public:
  void reportMemoryUsage(void* /*pointer*/, int64_t size, size_t /*allocated*/, size_t /*reserved*/,
                         c10::Device device) override {
    bytes_ += device.type() == cuda::on_device(0).device().type() ? size : 0;
  }
  bool memoryProfilingEnabled() const override { return true; }
  int64_t bytes() const { return bytes_; }

 private:
  int64_t bytes_ = 0;
};

void expect_memory_to_be_what_was_said(const FusionPlan& plan, const Models& models = tiny_models()) {
  std::vector<ModelSize> sizes;
  for (const auto& model : models) {
    sizes.push_back({model->spec(), model->dtype(), false, model->bytes()});
  }
  constexpr int64_t kPinned = 100 << 10;  // for each sequence
  for (const auto& [max_batch, max_context] : {std::pair<int64_t, int64_t>(1, 1024), {40, 4096}}) {
    const EngineOptions some = {max_batch, max_context, 1, 0, 0, {0, 0, 0, 0}};
    int64_t said = 0;
    int64_t bound = max_batch * kPinned;
    for (const MemoryPart& part : cuda::plan_memory(plan, sizes, some)) {
      const bool is_bound = part.name == "workspace";
      said += is_bound ? 0 : part.bytes;
      bound += is_bound && cuda::version() != "emulated" ? part.bytes : 0;  // an emulated device has no libraries
    }
    const auto taken = std::make_shared<Taken>();
    const c10::DebugInfoGuard guard(c10::DebugInfoKind::PROFILER_STATE, taken);
    const auto loop = cuda::make_step_loop(plan, models, some);
    const auto difference = static_cast<double>(taken->bytes() - said);
    const double rounding = 0.02 * static_cast<double>(said);
    EXPECT(difference > -rounding && difference < rounding + static_cast<double>(bound));
  }
}

void the_memory_is_what_was_said() {
  expect_memory_to_be_what_was_said(tiny_plan());
  expect_memory_to_be_what_was_said(testing::mapped_plan());
  expect_memory_to_be_what_was_said(tiny_plan(), {testing::tiny_model(1, /*mixed=*/true), testing::tiny_model(2),
                                                  testing::tiny_model(3), testing::tiny_model(4)});
}

// The small models have ids of their own; drafts are verified in one pass, and prompts come from the prefix cache.
void expect_mapped_tokens_to_be_those_of_the_processor(const Devices& devices) {
  const auto cpu = cpu::make_step_loop(testing::mapped_plan(), tiny_models(), {2, kContext, 1, 1 << 20});
  EngineOptions some = options(2, true, devices);
  some.prefix_cache_bytes = 1 << 20;
  const auto cuda = cuda::make_step_loop(testing::mapped_plan(), tiny_models(), some);
  for (const int64_t draft : {0, 3}) {
    for (int64_t id = 1; id <= 3; ++id) {
      Request request = make_request(id, 4, 12, id == 2 ? 0.0 : 1.0);
      cpu->add(request);
      request.speculation = {draft, kAutoDrafter, false};
      cuda->add(request);
    }
    const Tokens expected = run(*cpu);
    EXPECT(expected.size() == 3 && expected.at(3).size() == 12);
    EXPECT(run(*cuda) == expected);
  }
}

void models_may_have_ids_of_their_own() { expect_mapped_tokens_to_be_those_of_the_processor({0, 0, 0, 0}); }

void models_with_ids_of_their_own_may_be_on_another_device() {
  needs_two_devices();
  expect_mapped_tokens_to_be_those_of_the_processor({0, 1, 1, 1});
}

void impossible_maps_are_refused() {
  const auto refused = [](int64_t model, std::vector<int32_t> feed, std::vector<int32_t> read) {
    FusionPlan plan = tiny_plan();
    plan.token_maps.resize(4);
    plan.token_maps[model] = {std::move(feed), std::move(read)};
    EXPECT_THROWS(cpu::make_step_loop(plan, tiny_models(), {1, kContext, 1}));
  };
  const std::vector<int32_t> zeros(kVocab, 0);
  std::vector<int32_t> outside = zeros;
  outside[3] = kVocab;
  std::vector<int32_t> none = zeros;
  none[3] = -1;
  refused(0, zeros, zeros);  // the large model
  refused(1, zeros, outside);
  refused(1, outside, zeros);
  refused(1, none, zeros);  // a token without partner is fed, too
  refused(1, {0, 1}, {0, 1});
}

void expect_scores_to_be_those_of_the_processor(const Devices& devices) {
  const Rule rules[] = {{},
                        {Combine::joint, Match::symmetric, {}},
                        {Combine::jsd, Match::symmetric, {}, 1.4, 0.01},
                        {Combine::certainty, Match::symmetric, {}},
                        {Combine::centroid, Match::symmetric, {}, 1.0, 0.0, {GateKind::top_prob, 0.05}}};
  for (const Rule& rule : rules) {
    const auto cpu = cpu::make_step_loop(tiny_plan(), tiny_models(), {1, kContext, 1});
    const auto loop =
        cuda::make_step_loop(tiny_plan(), tiny_models(), with_prefix_cache(options(1, true, devices), 1 << 20));
    for (const std::vector<int>& experts : {std::vector<int>{0, 1}, {1}, {}}) {
      ScoreRequest request = testing::score_request(2, experts);
      request.rule = rule;
      testing::expect_scores_near(loop->score(request, [] {}), cpu->score(request, [] {}), 3e-3);
    }
  }
}

void scores_are_those_of_the_processor() { expect_scores_to_be_those_of_the_processor(kOne); }

void scores_may_be_of_two_devices() {
  needs_two_devices();
  expect_scores_to_be_those_of_the_processor(kTwo);
}

void scoring_leaves_sequences_alone() {
  const auto loop = cuda::make_step_loop(tiny_plan(), tiny_models(), options(2));
  testing::expect_scores_beside_sequences(*loop, 4, [](StepLoop& loop) {
    for (int64_t id = 0; id < 3; ++id) {
      loop.add(make_request(id, 5 + id, 3));
    }
  });
  testing::expect_scores_that_do_not_fit_are_refused(*loop);
}

void sequences_go_on_while_something_is_scored() {
  for (const int64_t prefix_cache_bytes : {0, 1 << 20}) {
    EngineOptions scoring = options(2);
    scoring.prefix_cache_bytes = prefix_cache_bytes;
    const auto loop = cuda::make_step_loop(tiny_plan(), tiny_models(), scoring);
    testing::expect_steps_while_scoring(*loop, [](StepLoop& loop) {
      for (int64_t id = 0; id < 3; ++id) {
        Request request = make_request(id, 5 + id, 12);
        request.speculation = {id, kPromptLookup, false};
        loop.add(std::move(request));
      }
    });
  }
}

}  // namespace
}  // namespace dlf

// The small tests run every part of the backend, mostly on two devices.
int main(int argc, char** argv) {
  return dlf::testing::run_cuda(
      argc, argv,
      {
          {"requests that are put back go on", dlf::requests_that_are_put_back_go_on, true},
          {"so do those on two devices", dlf::so_do_those_on_two_devices, true},
          {"so do those with adapters and a drafter", dlf::so_do_those_with_adapters_and_a_drafter, true},
          {"tokens are those of the processor", dlf::tokens_are_those_of_the_processor},
          {"batches and graphs change nothing", dlf::batches_and_graphs_change_nothing},
          {"graphs are captured when nobody waits", dlf::graphs_are_captured_when_nobody_waits, true},
          {"no prompt has a size that the library has not met", dlf::no_prompt_has_a_size_that_the_library_has_not_met},
          {"drafts change nothing", dlf::drafts_change_nothing},
          {"drafts leave nothing in slots that read a prompt", dlf::drafts_leave_nothing_in_slots_that_read_a_prompt,
           true},
          {"drafts on two devices change nothing", dlf::drafts_on_two_devices_change_nothing},
          {"drafts that are right are taken", dlf::drafts_that_are_right_are_taken},
          {"requests may have rules of their own", dlf::requests_may_have_rules_of_their_own},
          {"rules that share a kernel share a graph", dlf::rules_that_share_a_kernel_share_a_graph, true},
          {"a drafter may be on another device", dlf::a_drafter_may_be_on_another_device},
          {"a drafter may run out of context", dlf::a_drafter_may_run_out_of_context},
          {"drafts end where the sequence does", dlf::drafts_end_where_the_sequence_does, true},
          {"models may be on two devices", dlf::models_may_be_on_two_devices, true},
          {"the large model decodes alone", dlf::the_large_model_decodes_alone},
          {"lanes share a model", dlf::lanes_share_a_model},
          {"experts may lack a base", dlf::experts_may_lack_a_base, true},
          {"adapters are those of the processor", dlf::adapters_are_those_of_the_processor},
          {"adapters may be on two devices", dlf::adapters_may_be_on_two_devices, true},
          {"the prefix cache changes nothing", dlf::the_prefix_cache_changes_nothing},
          {"prefix caches of two devices change nothing", dlf::prefix_caches_of_two_devices_change_nothing, true},
          {"a cancelled sequence leaves its slot", dlf::a_cancelled_sequence_leaves_its_slot, true},
          {"stop tokens and the context end a sequence", dlf::stop_tokens_and_the_context_end_a_sequence},
          {"logits that are not numbers end only their sequence",
           dlf::logits_that_are_not_numbers_end_only_their_sequence, true},
          {"scores are those of the processor", dlf::scores_are_those_of_the_processor},
          {"scores may be of two devices", dlf::scores_may_be_of_two_devices, true},
          {"sequences go on while something is scored", dlf::sequences_go_on_while_something_is_scored},
          {"scoring leaves sequences alone", dlf::scoring_leaves_sequences_alone, true},
          {"the largest plan runs", dlf::the_largest_plan_runs, true},
          {"what does not fit is refused", dlf::what_does_not_fit_is_refused, true},
          {"the memory is what was said", dlf::the_memory_is_what_was_said},
          {"models may have ids of their own", dlf::models_may_have_ids_of_their_own},
          {"models with ids of their own may be on another device",
           dlf::models_with_ids_of_their_own_may_be_on_another_device},
          {"impossible maps are refused", dlf::impossible_maps_are_refused},
      });
}
