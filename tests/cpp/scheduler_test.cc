// Tests the scheduler's decisions with a simulated clock: which request waits, and for how long.
#include "engine/scheduler.h"

#include <ATen/ops/empty.h>

#include <algorithm>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "check.h"

namespace dlf {
namespace {

constexpr int64_t kChunk = 256;         // tokens
constexpr double kStepSeconds = 10;     // for all that decode
constexpr double kChunkSeconds = 2560;  // for a whole chunk: ten a token
constexpr int64_t kContext = 2048;

// Takes the simulated time of each chunk's tokens and records the order of the chunks.
class Chunks final : public ChunkReader {
 public:
  int64_t most_tokens() const override { return kChunk; }
  int64_t most_chunks() const override { return at_once; }
  void read(const Chunk& chunk) override {
    const auto tokens = static_cast<int64_t>(chunk.tokens.size());
    now += kChunkSeconds * static_cast<double>(tokens) / kChunk;
    read_by_slot.push_back(chunk.cache_slot);
    ends[chunk.cache_slot].push_back(chunk.end);
    EXPECT(chunk.end - chunk.begin == tokens);
  }
  void read_again(const Chunk& chunk) override {
    EXPECT(chunk.again);
    again += chunk.end - chunk.begin;
  }
  int64_t logits_bytes(int64_t /*lane*/) const override { return 16; }
  at::Tensor save_logits(const Chunk& /*chunk*/) override { return at::empty({16}, at::kByte); }
  void restore_logits(const Chunk& /*chunk*/, const at::Tensor& /*from*/) override { ++restored; }
  void release(at::Tensor /*memory*/) override {}

  double now = 0;
  int64_t at_once = 1;
  int restored = 0;
  int64_t again = 0;                             // tokens read again
  std::vector<int64_t> read_by_slot;             // each sequence has one lane: its cache slot is its slot
  std::map<int64_t, std::vector<int64_t>> ends;  // ends of each slot's chunks
};

// Blocks without memory.
class Blocks final : public BlockStore {
 public:
  explicit Blocks(int64_t count) : count_(count) {}

  int64_t block_count() const override { return count_; }
  void set_block(int64_t /*slot*/, int64_t /*index*/, int32_t block) override { EXPECT(block >= 0 && block < count_); }
  void copy_block(int32_t from, int32_t to) override { EXPECT(from != to); }

 private:
  int64_t count_;
};

FusionPlan one_lane() {
  FusionPlan plan;
  plan.lane_model = {0};
  plan.vocab = 100;
  return plan;
}

// A loop in which each decoding sequence gets one token per step.
struct Loop {
  // `count`: blocks of the KV cache; 0: more than enough.
  explicit Loop(int64_t max_batch, int64_t budget = kChunk, int64_t prefix_cache_bytes = 0, int64_t count = 0)
      : blocks(count > 0 ? count : 10000),
        memory(plan, {max_batch, kContext, 1, prefix_cache_bytes}, stores, chunks),
        scheduler(plan, max_batch, budget, memory),
        prompts(plan, {64}, memory, chunks) {}

  void add(int64_t id, int64_t prompt, int64_t max_new_tokens, int64_t first_token = 0,
           std::vector<int64_t> breaks = {}, int64_t priority = 0) {
    Request request;
    request.id = id;
    request.prompts.resize(1);
    for (int64_t i = 0; i < prompt; ++i) {
      request.prompts[0].tokens.push_back((first_token + i) % plan.vocab);
    }
    request.prompts[0].breaks = std::move(breaks);
    request.max_new_tokens = max_new_tokens;
    request.priority = priority;
    scheduler.add(make_sequence(std::move(request), plan, kContext));
  }

  // Runs a step and returns the requests that got a token.
  std::vector<int64_t> step() {
    std::vector<int64_t> given;
    scheduler.admit(prompts);
    scheduler.read_prompts(prompts);
    scheduler.make_room([&](Sequence& sequence) { put_back.push_back(sequence.request); });
    chunks.now += scheduler.decoding().empty() ? 0 : kStepSeconds;
    for (Sequence* sequence : scheduler.decoding()) {
      StepOutput& output = sequence->next_output(0, 0);
      output.token = 1;
      sequence->append(output);
      given.push_back(sequence->request);
      longest_gap[sequence->request] = std::max(longest_gap[sequence->request], chunks.now - last[sequence->request]);
      last[sequence->request] = chunks.now;
    }
    ++steps;
    return given;
  }

  // Runs steps until a request gets a token; returns their number.
  int64_t steps_to(int64_t request) {
    const int64_t before = steps;
    for (bool given = false; !given && steps < 10000;) {
      const std::vector<int64_t> got = step();
      given = std::find(got.begin(), got.end(), request) != got.end();
    }
    return steps - before;
  }

  FusionPlan plan = one_lane();
  Chunks chunks;
  Blocks blocks;
  std::vector<BlockStore*> stores = {&blocks};
  CacheMemory memory;
  Scheduler scheduler;
  PromptReader prompts;
  std::map<int64_t, double> last, longest_gap;
  std::vector<int64_t> put_back;  // requests, in order
  int64_t steps = 0;
};

// Seven prompts of the longest context arrive at once: a decoding request waits for at most a step and one budget.
void a_running_request_waits_for_one_chunk() {
  for (const int64_t budget : {kChunk, kChunk / 4, 2 * kChunk}) {
    Loop loop(8, budget);
    loop.add(0, 5, 1000);
    loop.step();
    loop.longest_gap.clear();
    for (int64_t id = 1; id <= 7; ++id) {
      loop.add(id, kContext - 2, 2);
    }
    for (int64_t id = 1; id <= 7; ++id) {
      if (loop.last.count(id) == 0) {
        loop.steps_to(id);
      }
    }
    const double chunks = std::max<double>(1, static_cast<double>(budget) / kChunk);
    EXPECT(loop.longest_gap[0] <= kStepSeconds + chunks * kChunkSeconds);
    EXPECT(loop.steps >= 7 * (kContext / kChunk) / chunks);
  }
}

// A prompt of one chunk that arrives after six long ones is read in their first round, not after them.
void prompts_take_turns() {
  Loop loop(8);
  loop.add(0, 5, 1000);
  loop.step();
  for (int64_t id = 1; id <= 6; ++id) {
    loop.add(id, kContext - 2, 2);
  }
  loop.add(7, 20, 2);
  EXPECT(loop.steps_to(7) <= 7);
  loop.chunks.read_by_slot.clear();
  for (int i = 0; i < 12; ++i) {
    loop.step();
  }
  std::map<int64_t, int> counts;
  for (const int64_t slot : loop.chunks.read_by_slot) {
    ++counts[slot];
  }
  EXPECT(counts.size() == 6);
  for (const auto& [slot, count] : counts) {
    EXPECT(count == 2);
  }
}

// Reading of a long prompt continues, however many short ones arrive after it.
void no_prompt_waits_for_ever() {
  Loop loop(4);
  loop.add(0, 5, 100000);
  loop.step();
  loop.add(1, kContext - 2, 1);
  int64_t id = 2;
  for (int64_t step = 0; step < 200 && loop.last.count(1) == 0; ++step) {
    loop.add(id++, 200, 1);
    loop.add(id++, 250, 1);
    loop.step();
  }
  EXPECT(loop.last.count(1) == 1);
}

// Short prompts share a budget; those that do not fit are read in the next step.
void short_prompts_share_a_step() {
  Loop loop(8);
  loop.add(0, 5, 1000);
  loop.step();
  for (int64_t id = 1; id <= 6; ++id) {
    loop.add(id, 60, 5);
  }
  EXPECT(loop.step() == (std::vector<int64_t>{0, 1, 2, 3, 4}));
  EXPECT(loop.step() == (std::vector<int64_t>{0, 1, 2, 3, 4, 5, 6}));
}

// A budget below one chunk still reads one; a larger budget reads as many as fit, even of a single prompt.
void the_budget_bounds_the_chunks_of_a_step() {
  for (const auto& [budget, chunks] : {std::pair<int64_t, size_t>(1, 1), {kChunk, 1}, {3 * kChunk + 10, 3}}) {
    Loop loop(2, budget);
    loop.add(0, 5, 1000);
    loop.step();
    loop.add(1, kContext - 2, 2);
    for (int step = 0; step < 2; ++step) {
      loop.chunks.read_by_slot.clear();
      loop.step();
      EXPECT(loop.chunks.read_by_slot.size() == chunks);
    }
  }
}

// While no request decodes, each step reads a chunk of every prompt.
void prompts_have_the_step_where_nobody_decodes() {
  Loop loop(4);
  for (int64_t id = 0; id < 4; ++id) {
    loop.add(id, 500 + 300 * id, 3);
  }
  loop.step();
  EXPECT(loop.chunks.read_by_slot == (std::vector<int64_t>{0, 1, 2, 3}));
  EXPECT(loop.step() == std::vector<int64_t>{0});
}

// Chunks that share a pass are cached one by one.
void chunks_share_a_pass_where_nobody_decodes() {
  Loop loop(3, kChunk, 1 << 20);
  loop.chunks.at_once = 4;
  loop.add(0, 6 * kChunk + 5, 100);
  EXPECT(loop.steps_to(0) == 2);
  EXPECT(loop.chunks.ends[0] == (std::vector<int64_t>{4 * kChunk, 6 * kChunk + 5}));
  loop.add(1, 2 * kChunk + 5, 100, /*first_token=*/1);
  EXPECT(loop.steps_to(1) == 3);
  EXPECT(loop.chunks.ends[1] == (std::vector<int64_t>{kChunk, 2 * kChunk, 2 * kChunk + 5}));
  loop.add(2, 5 * kChunk + 1, 100);
  EXPECT(loop.steps_to(2) == 1);
  EXPECT(loop.chunks.ends[2] == std::vector<int64_t>{5 * kChunk + 1});
}

// The budget and other prompts change the order of chunks, but not their ends.
void chunks_end_where_they_would_end_alone() {
  const auto ends = [](int64_t budget, int others) {
    Loop loop(8, budget);
    loop.add(1, 1500, 2, 0, {100, 700});
    for (int64_t id = 2; id < 2 + others; ++id) {
      loop.add(id, 300 * id, 20);
    }
    loop.steps_to(1);
    return loop.chunks.ends[0];
  };
  const std::vector<int64_t> alone = {100, 356, 612, 700, 956, 1212, 1468, 1500};
  EXPECT(ends(kChunk, 0) == alone);
  EXPECT(ends(kChunk, 6) == alone);
  EXPECT(ends(10 * kChunk, 6) == alone);
}

// Cached chunks cost nothing: seven cached prompts decode in the step in which they arrive.
void cached_chunks_are_free() {
  Loop loop(8, kChunk, 1 << 20);
  loop.add(0, 1500, 1000);
  loop.steps_to(0);
  const double before = loop.chunks.now;
  for (int64_t id = 1; id <= 7; ++id) {
    loop.add(id, 1500, 2);
  }
  EXPECT(loop.step().size() == 8);
  EXPECT(loop.chunks.now == before + kStepSeconds);
  EXPECT(loop.chunks.restored == 7);                                                 // last chunks
  EXPECT(loop.memory.pool(0).size() - loop.memory.pool(0).free() == 1500 / 64 + 8);  // each has its own last block
}

// Blocks for two of three requests at their full lengths: the last one is put back, and reads its tokens again.
void the_last_in_turn_is_put_back() {
  Loop loop(3, kChunk, 0, 16);
  for (int64_t id = 0; id < 3; ++id) {
    loop.add(id, 250, 200);
  }
  EXPECT(loop.step() == (std::vector<int64_t>{0, 1, 2}));
  std::map<int64_t, int> tokens;
  std::vector<int64_t> ends;
  while (!loop.scheduler.idle()) {
    for (const int64_t request : loop.step()) {
      if (++tokens[request] == 199) {
        ends.push_back(request);
      }
    }
  }
  EXPECT(!loop.put_back.empty() && loop.put_back[0] == 2);
  EXPECT(std::count(loop.put_back.begin(), loop.put_back.end(), 0) == 0);
  EXPECT(ends == (std::vector<int64_t>{0, 1, 2}));
  EXPECT(loop.chunks.again >= 5);
  loop.scheduler.admit(loop.prompts);
  EXPECT(loop.memory.pool(0).free() == 16);
}

// A request is not admitted only to be put back a step later.
void a_request_that_waits_for_memory_is_not_read_again_and_again() {
  Loop loop(8, kChunk, 0, 40);
  for (int64_t id = 0; id < 30; ++id) {
    loop.add(id, 100 + 20 * id, 100 + 10 * (id % 7));
  }
  while (!loop.scheduler.idle()) {
    loop.step();
  }
  EXPECT(loop.put_back.size() < 30);
}

void the_lower_priority_goes_first() {
  Loop loop(1);
  loop.add(0, 5, 3);
  loop.step();
  loop.add(1, 5, 1, 0, {}, 7);
  loop.add(2, 5, 1, 0, {}, -1);
  loop.add(3, 5, 1, 0, {}, 7);
  loop.add(4, 5, 1, 0, {}, -1);
  std::vector<int64_t> order;
  while (!loop.scheduler.idle()) {
    for (const int64_t request : loop.step()) {
      order.push_back(request);
    }
  }
  EXPECT(order == (std::vector<int64_t>{0, 0, 2, 4, 1, 3}));
}

void slots_are_taken_and_left() {
  Loop loop(2);
  for (int64_t id = 0; id < 4; ++id) {
    loop.add(id, 5, id == 0 ? 1 : 3);
  }
  EXPECT(loop.step() == (std::vector<int64_t>{0, 1}));
  EXPECT(!loop.scheduler.idle());
  EXPECT(loop.step() == (std::vector<int64_t>{1, 2}));  // in the slot that 0 left
  EXPECT(loop.scheduler.slots()[0]->request == 2 && loop.scheduler.slots()[1]->request == 1);
  loop.scheduler.cancel(1);
  loop.scheduler.cancel(99);
  EXPECT(loop.step() == (std::vector<int64_t>{2, 3}));
  loop.scheduler.cancel(3);
  EXPECT(loop.step() == std::vector<int64_t>{2});
  EXPECT(loop.scheduler.idle());
  loop.add(5, 2000, 3);
  loop.step();
  loop.scheduler.cancel(5);  // in the middle of its prompt
  EXPECT(loop.scheduler.idle());
  loop.add(6, 5, 1);
  loop.scheduler.cancel(6);  // before it has a slot
  EXPECT(loop.scheduler.idle());
  loop.add(7, 5, 5);
  loop.step();
  loop.scheduler.clear();
  EXPECT(loop.scheduler.idle() && !loop.scheduler.slots()[0]);
}

}  // namespace
}  // namespace dlf

int main() {
  return dlf::testing::run({
      {"a running request waits for one chunk", dlf::a_running_request_waits_for_one_chunk},
      {"prompts take turns", dlf::prompts_take_turns},
      {"no prompt waits for ever", dlf::no_prompt_waits_for_ever},
      {"short prompts share a step", dlf::short_prompts_share_a_step},
      {"the budget bounds the chunks of a step", dlf::the_budget_bounds_the_chunks_of_a_step},
      {"prompts have the step where nobody decodes", dlf::prompts_have_the_step_where_nobody_decodes},
      {"chunks share a pass where nobody decodes", dlf::chunks_share_a_pass_where_nobody_decodes},
      {"chunks end where they would end alone", dlf::chunks_end_where_they_would_end_alone},
      {"cached chunks are free", dlf::cached_chunks_are_free},
      {"the last in turn is put back", dlf::the_last_in_turn_is_put_back},
      {"a request that waits for memory is not read again and again",
       dlf::a_request_that_waits_for_memory_is_not_read_again_and_again},
      {"the lower priority goes first", dlf::the_lower_priority_goes_first},
      {"slots are taken and left", dlf::slots_are_taken_and_left},
  });
}
