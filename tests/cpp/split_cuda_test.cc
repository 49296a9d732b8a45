// A large model that is split over two GPUs, or emulated ones, gives the tokens of the CPU, in float32, whatever else
// an engine does.
#include <ATen/ops/equal.h>

#include <memory>
#include <utility>
#include <vector>

#include "check.h"
#include "cuda_testing.h"
#include "engine/cpu/step_loop.h"
#include "engine/cuda/step_loop.h"
#include "model/cuda/collectives.h"
#include "tiny_family.h"

namespace dlf {
namespace {

using testing::kVocab;
using testing::make_request;
using testing::run;
using testing::tiny_model;
using testing::tiny_models;
using testing::tiny_plan;
using testing::Tokens;

constexpr int64_t kContext = 64;

// The last device, which may be the only one: shards may share it.
int second() { return static_cast<int>(cuda::devices().size()) - 1; }

EngineOptions split(int64_t max_batch, bool graph = true, int64_t max_context = kContext) {
  EngineOptions options = {max_batch, max_context, 1};
  options.devices = {0, 0, second(), second(), 0};
  options.split = {second()};
  options.graph = graph;
  return options;
}

// All ranks get the same bits, whose order of additions is that of the ranks.
void sums_and_gathers_of_three_ranks() {
  constexpr int64_t kSize = 1000;
  std::vector<std::unique_ptr<cuda::Queue>> own;
  std::vector<cuda::Queue*> queues;
  for (const int device : {0, second(), 0}) {
    queues.push_back(own.emplace_back(std::make_unique<cuda::Queue>(device)).get());
  }
  cuda::Collectives collectives(queues, DType::bfloat16, kSize, kSize);
  std::mt19937 generator(4);
  for (int round = 0; round < 3; ++round) {
    std::vector<at::Tensor> terms;
    std::vector<at::Tensor> sums;
    std::vector<at::Tensor*> y;
    sums.reserve(3);
    for (size_t rank = 0; rank < 3; ++rank) {
      terms.push_back(testing::random_tensor({kSize}, generator));
      queues[rank]->run([&] {
        collectives.term(rank).copy_(terms[rank]);
        sums.push_back(
            at::empty({kSize}, cuda::on_device(queues[rank]->device()).dtype(round == 1 ? at::kBFloat16 : at::kFloat)));
      });
      y.push_back(&sums.back());
    }
    collectives.sum(y, kSize);
    collectives.join();
    queues[0]->synchronize();
    const at::Tensor expected = (terms[0] + terms[1] + terms[2]).to(sums[0].scalar_type());
    for (const at::Tensor& sum : sums) {
      EXPECT(at::equal(sum.cpu(), expected));
    }
  }
  const std::vector<int64_t> columns = {32, 16, 2};
  const at::Tensor parts = testing::random_tensor({3, 20 * 32}, generator);
  std::vector<at::Tensor> there;
  std::vector<const float*> data;
  at::Tensor y;
  at::Tensor positions;
  for (size_t rank = 0; rank < 3; ++rank) {
    queues[rank]->run([&] {
      there.push_back(parts[static_cast<int64_t>(rank)].to(cuda::on_device(queues[rank]->device()).device()).clone());
    });
    queues[rank]->synchronize();
    data.push_back(there.back().const_data_ptr<float>());
  }
  queues[0]->run([&] {
    y = at::zeros({20, 50}, cuda::on_device(0).dtype(at::kFloat));
    positions = at::zeros({20}, cuda::on_device(0).dtype(at::kInt));
    positions[7].fill_(-1);
  });
  collectives.gather(data, columns, 20, y.mutable_data_ptr<float>(), positions.const_data_ptr<int32_t>());
  queues[0]->synchronize();
  const at::Tensor found = y.cpu();
  int64_t first = 0;
  for (size_t rank = 0; rank < 3; ++rank) {
    at::Tensor expected = parts[static_cast<int64_t>(rank)].narrow(0, 0, 20 * columns[rank]).view({20, -1}).clone();
    expected[7].zero_();
    EXPECT(at::equal(found.narrow(1, first, columns[rank]), expected));
    first += columns[rank];
  }
}

Tokens tokens_of_many(StepLoop& loop, Combine combine = Combine::select) {
  for (int64_t id = 0; id < 5; ++id) {
    loop.add(make_request(id, 1 + 5 * id, 4 + 2 * id, id % 2 == 0 ? 1.0 : 0.0, combine));
  }
  return run(loop);
}

void tokens_are_those_of_the_processor() {
  for (const Combine combine : {Combine::select, Combine::joint, Combine::certainty}) {
    const auto cpu = cpu::make_step_loop(tiny_plan(), tiny_models(), {3, kContext, 1});
    const Tokens expected = tokens_of_many(*cpu, combine);
    for (const bool graph : {true, false}) {
      const auto loop = cuda::make_step_loop(tiny_plan(), tiny_models(), split(3, graph));
      EXPECT(tokens_of_many(*loop, combine) == expected);
      while (loop->prepare()) {
      }
      EXPECT(tokens_of_many(*loop, combine) == expected);  // now with graphs
    }
  }
}

// Four shards, of which two each have the same keys and values.
void a_model_may_have_more_shards_than_key_heads() {
  ModelSpec spec = testing::tiny_spec(70, 16, 48, {1.0F, 0.01F}, 2);
  std::mt19937 generator(2);
  TensorMap tensors;
  for (const TensorSlot& slot : tensor_slots(spec)) {
    tensors[slot.name] = testing::random_tensor(slot.shape, generator);
  }
  const Models models = {std::make_shared<const Weights>(spec, tensors)};
  FusionPlan plan;
  plan.lane_model = {0};
  plan.vocab = 70;
  EngineOptions four = split(2);
  four.devices = {0};
  four.split = {second(), 0, second()};
  const auto cpu = cpu::make_step_loop(plan, models, {2, kContext, 1});
  const auto loop = cuda::make_step_loop(plan, models, four);
  for (const int64_t id : {1, 2, 3}) {
    Request request = make_request(id, 4 + id, 12);
    request.prompts.resize(1);
    request.experts = {};
    cpu->add(request);
    loop->add(request);
  }
  EXPECT(run(*loop) == run(*cpu));
}

void rules_and_drafts_keep_apart() {
  testing::expect_rules_to_keep_apart([] { return cuda::make_step_loop(tiny_plan(), tiny_models(), split(4)); });
}

// With so little memory that requests are put back. A step has no more than the eight rows that are exact.
void requests_that_are_put_back_go_on() {
  const auto make = [&](int64_t kv_cache_bytes) {
    EngineOptions options = split(2, true, 128);
    options.prefix_cache_bytes = 1 << 20;
    options.kv_cache_bytes = kv_cache_bytes;
    return cuda::make_step_loop(tiny_plan(), tiny_models(), options);
  };
  std::vector<Request> requests;
  for (int64_t id = 0; id < 2; ++id) {  // each begins in one block and ends in two; there are three
    Request& request = requests.emplace_back(make_request(id, 50, 24));
    request.sampling.frequency_penalty = 0.1;
    request.speculation = {2 * id, kPromptLookup, false};
  }
  const testing::Outputs expected = testing::run_all(*make(0), requests);
  const auto loop = make(testing::tiny_cache_bytes(192));
  EXPECT(testing::run_all(*loop, requests) == expected && loop->put_back() > 0);
}

void the_prefix_cache_changes_nothing() {
  const auto cpu = cpu::make_step_loop(tiny_plan(), tiny_models(), {2, 128, 1});
  testing::expect_the_prefix_cache_to_change_nothing(*cpu, [](int64_t bytes) {
    EngineOptions options = split(2, true, 128);
    options.prefix_cache_bytes = bytes;
    return cuda::make_step_loop(tiny_plan(), tiny_models(), options);
  });
}

// Lanes of the large model with two adapters and with none.
void the_large_model_may_have_adapters() {
  FusionPlan plan;
  plan.lane_model = {0, 0, 1, 0};
  plan.lane_adapter = {-1, 0, -1, 1};
  plan.experts = {{1, 0}, {3, 2}};
  plan.vocab = kVocab;
  const Models models = {tiny_model(1), tiny_model(2)};
  const Adapters adapters = {{testing::tiny_adapter(5, 3, true), testing::tiny_adapter(6, 7, false)}, {}};
  const auto cpu = cpu::make_step_loop(plan, models, {2, kContext, 1}, adapters);
  const auto loop = cuda::make_step_loop(plan, models, split(2), adapters);
  for (StepLoop* each : std::initializer_list<StepLoop*>{cpu.get(), loop.get()}) {
    for (const int64_t id : {1, 2, 3}) {
      each->add(make_request(id, 4 + id, 6, 1.0, Combine::centroid));
    }
  }
  EXPECT(run(*loop) == run(*cpu));
}

// More positions at a time than rows have logits in a step.
void scores_are_those_of_the_processor() {
  const auto cpu = cpu::make_step_loop(tiny_plan(), tiny_models(), {1, kContext, 1});
  const auto loop = cuda::make_step_loop(tiny_plan(), tiny_models(), split(2));
  ScoreRequest request = testing::score_request(2);
  request.continuations.push_back(std::vector<int64_t>(30, 7));
  testing::expect_scores_near(loop->score(request, [] {}), cpu->score(request, [] {}), 3e-3);
  testing::expect_scores_beside_sequences(*loop, 1, [](StepLoop& other) { other.add(make_request(1, 5, 2)); });
}

void what_cannot_be_split_is_refused() {
  const auto refused = [](EngineOptions options, Models models = tiny_models()) {
    EXPECT_THROWS(cuda::make_step_loop(tiny_plan(), models, std::move(options)));
  };
  EngineOptions missing = split(1);
  missing.split = {99};
  refused(missing);
  EngineOptions many = split(1);
  many.split = {0, 0};  // two heads of keys for three devices
  refused(many);
  refused(split(1), {tiny_model(1, /*mixed=*/true), tiny_model(2), tiny_model(3), tiny_model(4)});
}

}  // namespace
}  // namespace dlf

int main() {
  return dlf::testing::run_cuda({
      {"sums and gathers of three ranks", dlf::sums_and_gathers_of_three_ranks},
      {"tokens are those of the processor", dlf::tokens_are_those_of_the_processor},
      {"a model may have more shards than key heads", dlf::a_model_may_have_more_shards_than_key_heads},
      {"rules and drafts keep apart", dlf::rules_and_drafts_keep_apart},
      {"requests that are put back go on", dlf::requests_that_are_put_back_go_on},
      {"the prefix cache changes nothing", dlf::the_prefix_cache_changes_nothing},
      {"the large model may have adapters", dlf::the_large_model_may_have_adapters},
      {"scores are those of the processor", dlf::scores_are_those_of_the_processor},
      {"what cannot be split is refused", dlf::what_cannot_be_split_is_refused},
  });
}
