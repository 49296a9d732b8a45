// Tests the step loop on a tiny random family, for what Python cannot see, such as memory and slots.
#include "engine/cpu/step_loop.h"

#include <ATen/ops/empty.h>

#include <atomic>
#include <cmath>
#include <cstdlib>
#include <new>
#include <stdexcept>

#include "check.h"
#include "tiny_family.h"

namespace {
std::atomic<int64_t> allocations{0};
std::atomic<int64_t> allowed{INT64_MAX};  // allocations before one fails
}  // namespace

// Tensors, vectors and strings all allocate here. Not inline: GCC would warn that free() does not match new.
[[gnu::noinline]] void* operator new(size_t size) {
  ++allocations;
  if (allowed-- == 0) {
    throw std::bad_alloc();
  }
  if (void* memory = std::malloc(size == 0 ? 1 : size)) {
    return memory;
  }
  throw std::bad_alloc();
}
[[gnu::noinline]] void operator delete(void* memory) noexcept { std::free(memory); }
[[gnu::noinline]] void operator delete(void* memory, size_t) noexcept { std::free(memory); }

namespace dlf {
namespace {

using cpu::make_step_loop;
using testing::kVocab;
using testing::make_request;
using testing::run;
using testing::tiny_model;
using testing::Tokens;

const Speculation kSpeculations[] = {
    {},                        // none
    {4, kAutoDrafter, false},  // the expert with the most weight
    {3, 3, false},             // an expert
    {kMaxDraft, 2, false},     // the base
    {5, kPromptLookup, false},
    {8},  // as many as are worth it
};

std::unique_ptr<StepLoop> make_loop(int64_t max_batch = 3) {
  return make_step_loop(testing::tiny_plan(), testing::tiny_models(), {max_batch, 64, 2});
}

void a_decode_step_allocates_nothing() {
  const int64_t at_first = allocations;
  static_cast<void>(at::empty({1}, at::kFloat));
  EXPECT(allocations > at_first);  // libtorch's are counted too
  for (const Combine combine : {Combine::select, Combine::centroid, Combine::joint, Combine::grid}) {
    for (const Speculation& speculation : kSpeculations) {
      const auto loop = make_loop();
      for (int64_t id = 0; id < 3; ++id) {
        Request request = make_request(id, 5 + id, 40, 1.0, combine);
        request.speculation = speculation;
        loop->add(std::move(request));
      }
      loop->step();  // reads the prompts
      const int64_t before = allocations;
      for (int i = 0; i < 30 && !loop->idle(); ++i) {
        loop->step();
      }
      EXPECT(allocations == before);
    }
  }
}

void drafts_change_nothing() {
  const auto decode = [](const Speculation& speculation) {
    const auto loop = make_loop();
    for (int64_t id = 0; id < 7; ++id) {
      Request request = make_request(id, 1 + 5 * id, 40);
      request.speculation = speculation;
      loop->add(std::move(request));
    }
    return run(*loop);
  };
  const Tokens plain = decode({});
  for (const Speculation& speculation : kSpeculations) {
    EXPECT(decode(speculation) == plain);
  }
}

void plans_of_other_sizes_are_refused() {
  FusionPlan plan = testing::tiny_plan();
  plan.lane_model.resize(kMostLanes, 0);
  EXPECT(make_step_loop(plan, testing::tiny_models(), {1, 64, 1})->idle());
  plan.lane_model.push_back(0);
  EXPECT_THROWS(make_step_loop(plan, testing::tiny_models(), {1, 64, 1}));
  Models models = testing::tiny_models();
  models.push_back(tiny_model(5));  // has no lane
  EXPECT_THROWS(make_step_loop(testing::tiny_plan(), models, {1, 64, 1}));
}

void drafters_that_there_are_not_are_refused() {
  const auto loop = make_loop();
  for (const Speculation& speculation :
       {Speculation{-1}, Speculation{kMaxDraft + 1}, Speculation{2, 0}, Speculation{2, 4}, Speculation{2, -3}}) {
    Request request = make_request(1, 4, 5);
    request.speculation = speculation;
    EXPECT_THROWS(loop->add(request));
  }
  Request request = make_request(1, 4, 5);
  request.experts = {0};
  request.prompts[3] = {};
  request.speculation = {2, 3};  // the lane of the other expert
  EXPECT_THROWS(loop->add(request));
  EXPECT(loop->idle());
}

void sequences_do_not_depend_on_the_batch() {
  const auto together = make_loop();
  for (int64_t id = 0; id < 7; ++id) {  // more than slots
    together->add(make_request(id, 1 + 5 * id, 20));
  }
  const Tokens all = run(*together);
  for (int64_t id = 0; id < 7; ++id) {
    const auto alone = make_loop(1);
    alone->add(make_request(id, 1 + 5 * id, 20));
    EXPECT(run(*alone).at(id) == all.at(id));
    EXPECT(all.at(id).size() == 20);
  }
}

void requests_may_have_rules_of_their_own() {
  testing::expect_rules_to_keep_apart(
      [] { return make_step_loop(testing::tiny_plan(), testing::tiny_models(), {4, 64, 2}); });
}

void a_cancelled_sequence_leaves_its_slot() {
  const auto loop = make_loop(1);
  testing::expect_a_cancelled_sequence_leaves_its_slot(*loop, 190);
}

void the_context_ends_a_sequence() {
  const auto loop = make_loop();
  loop->add(make_request(1, 60, 1000));
  // The last of the 64 positions holds a token that is fed back; one more is chosen after it.
  EXPECT(run(*loop).at(1).size() == 5);
}

void logits_that_are_not_numbers_end_only_their_sequence() {
  const auto good = tiny_model(1);
  const auto broken = [] {
    auto weights = std::make_shared<Weights>(*tiny_model(2));
    weights->embedding.tensors.data.mutable_data_ptr<float>()[11 * 16] = NAN;  // token 11
    return weights;
  }();
  FusionPlan plan;
  plan.lane_model = {0, 1, 2};
  plan.experts = {{1, 2}};
  plan.vocab = kVocab;
  const auto loop = make_step_loop(plan, {good, broken, tiny_model(3)}, {2, 64, 1});
  for (const int64_t id : {1, 2}) {
    Request request = make_request(id, 1, 1);
    request.prompts.resize(3);
    request.experts = {0};
    for (Prompt& prompt : request.prompts) {
      prompt.tokens = {id == 1 ? 11 : 12};
    }
    loop->add(std::move(request));
  }
  int failed = 0;
  for (const StepOutput* output : loop->step()) {
    // The embedding is tied, so token 11's logit is NaN after any prompt.
    failed += output->finish == FinishReason::error && output->failure.kind == FailureKind::bad_logits &&
              output->failure.message.find("expert 0") != std::string::npos;
  }
  EXPECT(failed == 2);
  EXPECT(loop->idle());
}

// Whichever allocation of a request fails, the loop continues, and its later tokens are the same.
void memory_that_runs_out_leaves_the_loop_usable() {
  const auto fresh = make_step_loop(testing::tiny_plan(), testing::tiny_models(), {2, 128, 2, 1 << 20});
  fresh->add(testing::shared_request(1, 60, 5));
  const Tokens expected = run(*fresh);
  const auto loop = make_step_loop(testing::tiny_plan(), testing::tiny_models(), {2, 128, 2, 1 << 20});
  bool failed = true;
  int failures = 0;
  for (int64_t before = 0; failed; ++before, ++failures) {
    failed = false;
    Request request = testing::shared_request(1, 60, 5);
    allowed = before;
    try {
      loop->add(std::move(request));
      run(*loop);
    } catch (const std::exception&) {
      failed = true;
    }
    allowed = INT64_MAX;
    loop->cancel(1);
    EXPECT(loop->idle());
    loop->add(testing::shared_request(1, 60, 5));
    EXPECT(run(*loop) == expected);
  }
  EXPECT(failures > 20);
}

void requests_that_do_not_fit_are_refused() {
  const auto loop = make_loop();
  testing::expect_requests_that_do_not_fit_are_refused(*loop);
}

void scoring_leaves_sequences_alone() {
  for (const Combine combine : {Combine::select, Combine::joint}) {
    const auto loop = make_step_loop(testing::tiny_plan(), testing::tiny_models(), {2, 64, 2, 1 << 20});
    testing::expect_scores_beside_sequences(*loop, 20, [&](StepLoop& loop) {
      for (int64_t id = 0; id < 3; ++id) {
        loop.add(make_request(id, 5 + id, 6, 1.0, combine));
      }
    });
  }
}

void sequences_go_on_while_something_is_scored() {
  for (const int64_t prefix_cache_bytes : {0, 1 << 20}) {
    const auto loop = make_step_loop(testing::tiny_plan(), testing::tiny_models(), {2, 64, 2, prefix_cache_bytes});
    testing::expect_steps_while_scoring(*loop, [](StepLoop& loop) {
      for (int64_t id = 0; id < 3; ++id) {
        Request request = make_request(id, 5 + id, 20, 1.0, Combine::joint);
        request.speculation = {4 * id, kAutoDrafter, false};
        loop.add(std::move(request));
      }
    });
  }
}

void scores_that_do_not_fit_are_refused() {
  const auto loop = make_loop(1);
  testing::expect_scores_that_do_not_fit_are_refused(*loop);
}

}  // namespace
}  // namespace dlf

int main() {
  return dlf::testing::run({
      {"a decode step allocates nothing", dlf::a_decode_step_allocates_nothing},
      {"drafts change nothing", dlf::drafts_change_nothing},
      {"plans of other sizes are refused", dlf::plans_of_other_sizes_are_refused},
      {"drafters that there are not are refused", dlf::drafters_that_there_are_not_are_refused},
      {"sequences do not depend on the batch", dlf::sequences_do_not_depend_on_the_batch},
      {"requests may have rules of their own", dlf::requests_may_have_rules_of_their_own},
      {"a cancelled sequence leaves its slot", dlf::a_cancelled_sequence_leaves_its_slot},
      {"the context ends a sequence", dlf::the_context_ends_a_sequence},
      {"logits that are not numbers end only their sequence", dlf::logits_that_are_not_numbers_end_only_their_sequence},
      {"memory that runs out leaves the loop usable", dlf::memory_that_runs_out_leaves_the_loop_usable},
      {"requests that do not fit are refused", dlf::requests_that_do_not_fit_are_refused},
      {"scoring leaves sequences alone", dlf::scoring_leaves_sequences_alone},
      {"sequences go on while something is scored", dlf::sequences_go_on_while_something_is_scored},
      {"scores that do not fit are refused", dlf::scores_that_do_not_fit_are_refused},
  });
}
