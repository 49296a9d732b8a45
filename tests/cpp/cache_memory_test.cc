// Tests the blocks of the KV caches: who holds them, and that requests which are put back for lack of them go on with
// the same results.
#include <algorithm>
#include <map>
#include <random>

#include "check.h"
#include "engine/block_pool.h"
#include "engine/cache_size.h"
#include "engine/cpu/step_loop.h"
#include "tiny_family.h"

namespace dlf {
namespace {

using ops::kCacheBlock;

// Blocks whose contents are the tokens that slots write.
class Blocks final : public BlockStore {
 public:
  Blocks(int64_t count, int64_t slots, int64_t of_slot)
      : of_slot_(of_slot), table_(slots * of_slot, -1), tokens_(count * kCacheBlock, -1) {}

  int64_t block_count() const override { return static_cast<int64_t>(tokens_.size()) / kCacheBlock; }
  void set_block(int64_t slot, int64_t index, int32_t block) override { table_[slot * of_slot_ + index] = block; }
  void copy_block(int32_t from, int32_t to) override {
    std::copy_n(&tokens_[from * kCacheBlock], kCacheBlock, &tokens_[to * kCacheBlock]);
  }

  int64_t& token(int64_t slot, int64_t position) {
    return tokens_[table_[slot * of_slot_ + position / kCacheBlock] * kCacheBlock + position % kCacheBlock];
  }

 private:
  int64_t of_slot_;
  std::vector<int32_t> table_;
  std::vector<int64_t> tokens_;
};

void blocks_are_taken_and_given_back() {
  Blocks blocks(5, 2, 4);
  BlockPool pool(2, 4, blocks);
  EXPECT(pool.size() == 5 && pool.free() == 5 && pool.lacking(0, 130) == 3);
  pool.reserve(0, 130);
  EXPECT(pool.lacking(0, 192) == 0 && pool.lacking(0, 193) == 1 && pool.free() == 2);
  pool.reserve(0, 1);  // nothing to take
  pool.reserve(1, 65);
  EXPECT(pool.free() == 0 && pool.lacking(1, 129) == 1);
  EXPECT_THROWS(pool.reserve(1, 129));
  pool.release(0);
  EXPECT(pool.free() == 3 && pool.lacking(0, 1) == 1);
}

void whole_blocks_are_shared_and_others_copied() {
  Blocks blocks(8, 3, 4);
  BlockPool pool(3, 4, blocks);
  pool.reserve(0, 150);
  for (int64_t i = 0; i < 150; ++i) {
    blocks.token(0, i) = i;
  }
  const std::vector<int32_t> chunk = pool.keep(0, 0, 150);
  EXPECT(chunk.size() == 3 && pool.idle() == 0);
  pool.share(1, 0, 150, chunk);
  EXPECT(pool.free() == 5 && pool.lacking(1, 151) == 1);  // the last one is not shared
  pool.reserve(1, 151);
  blocks.token(0, 150) = 1000;  // the first slot goes on
  pool.settle(1);
  blocks.token(1, 150) = 2000;
  EXPECT(blocks.token(0, 150) == 1000 && pool.free() == 4);
  for (int64_t i = 0; i < 150; ++i) {
    EXPECT(blocks.token(1, i) == i);
  }
  pool.release(0);
  EXPECT(pool.free() == 4 && pool.idle() == 1 && pool.used(chunk));
  pool.release(1);
  EXPECT(pool.free() == 5 && pool.idle() == 3 && !pool.used(chunk));
  pool.drop(chunk);
  EXPECT(pool.free() == 8 && pool.idle() == 0);
}

// Slots read random prompts out of few beginnings, chunk by chunk, from a cache if it has the chunk, and write further
// tokens; chunks are dropped at random. Each slot always has its own tokens.
void slots_keep_their_tokens_apart() {
  constexpr int64_t kSlots = 5, kOfSlot = 6, kCount = 60;
  std::mt19937 random(3);
  Blocks blocks(kCount, kSlots, kOfSlot);
  BlockPool pool(kSlots, kOfSlot, blocks);
  std::map<std::pair<int64_t, std::vector<int64_t>>, std::vector<int32_t>> cache;  // by begin and all tokens
  std::vector<std::vector<int64_t>> tokens(kSlots);
  const auto is_right = [&](int64_t slot) {
    for (size_t i = 0; i < tokens[slot].size(); ++i) {
      if (blocks.token(slot, static_cast<int64_t>(i)) != tokens[slot][i]) {
        return false;
      }
    }
    return true;
  };
  int64_t shared = 0;
  for (int round = 0; round < 4000; ++round) {
    const auto slot = static_cast<int64_t>(random() % kSlots);
    std::vector<int64_t>& own = tokens[slot];
    const auto begin = static_cast<int64_t>(own.size());
    const auto end = begin + 1 + static_cast<int64_t>((random() % 3) * 45);
    if (random() % 8 == 0 || end > kOfSlot * kCacheBlock) {
      pool.release(slot);
      own.clear();
      continue;
    }
    const bool is_prompt = random() % 4 != 0;
    for (int64_t i = begin; i < end; ++i) {
      own.push_back(is_prompt ? i + 1000 * static_cast<int64_t>(random() % 1000 == 0) : static_cast<int64_t>(random()));
    }
    const auto found = cache.find({begin, own});
    if (is_prompt && found != cache.end()) {
      pool.share(slot, begin, end, found->second);
      pool.reserve(slot, end);
      ++shared;
    } else {
      pool.reserve(slot, end);
      pool.settle(slot);
      for (int64_t i = begin; i < end; ++i) {
        blocks.token(slot, i) = own[i];
      }
      if (is_prompt && cache.size() < 8) {
        cache[{begin, own}] = pool.keep(slot, begin, end);
      }
    }
    if (random() % 10 == 0 && !cache.empty()) {
      const auto dropped = std::next(cache.begin(), static_cast<int64_t>(random() % cache.size()));
      pool.drop(dropped->second);
      cache.erase(dropped);
    }
    for (int64_t other = 0; other < kSlots; ++other) {
      if (random() % 2 == 0) {
        pool.settle(other);
        EXPECT(is_right(other));
      }
    }
  }
  EXPECT(shared > 20);
  for (int64_t slot = 0; slot < kSlots; ++slot) {
    pool.release(slot);
  }
  for (const auto& [key, chunk] : cache) {
    pool.drop(chunk);
  }
  EXPECT(pool.free() == kCount && pool.idle() == 0);
}

void sizes_follow_the_options() {
  FusionPlan plan = testing::tiny_plan();
  plan.lane_model = {0, 1, 1, 2};
  const std::vector<int64_t> bytes = {1000, 100, 300};
  const auto blocks = [&](EngineOptions options) {
    std::vector<std::pair<int64_t, int64_t>> found;
    for (const CacheSize& size : cache_sizes(plan, bytes, options)) {
      found.emplace_back(size.for_requests, size.for_prefixes);
    }
    return found;
  };
  using Found = std::vector<std::pair<int64_t, int64_t>>;
  EngineOptions options = {3, 130};
  EXPECT(blocks(options) == (Found{{12, 0}, {24, 0}, {12, 0}}));  // with those for scoring
  options.prefix_cache_bytes = 3000;
  EXPECT(blocks(options) == (Found{{12, 3}, {24, 30}, {12, 10}}));
  options.devices = {0, 0, 1};
  EXPECT(blocks(options) == (Found{{9, 2}, {18, 4}, {9, 10}}));  // those of one device share it
  options.kv_cache_bytes = 1500 * 5 + 1499;
  EXPECT(blocks(options) == (Found{{5, 0}, {10, 0}, {5, 0}}));
  options.kv_cache_bytes = int64_t{1} << 40;  // no more than anything can use
  EXPECT(blocks(options) == (Found{{9, 2}, {18, 4}, {9, 10}}));
  options.kv_cache_bytes = 1499;
  EXPECT_THROWS(blocks(options));
}

auto maker(FusionPlan plan, Models models, int64_t prefix_cache_bytes, Adapters adapters = {}) {
  return [=](int64_t kv_cache_bytes) {
    EngineOptions options = {4, 256, 1, prefix_cache_bytes};
    options.kv_cache_bytes = kv_cache_bytes;
    return cpu::make_step_loop(plan, models, options, adapters);
  };
}

void requests_that_are_put_back_go_on() {
  for (const int64_t bytes : {0, 100000, 1 << 24}) {
    testing::expect_put_back_requests_to_go_on(maker(testing::tiny_plan(), testing::tiny_models(), bytes), 12);
  }
}

void so_do_those_with_other_lanes() {
  testing::expect_put_back_requests_to_go_on(maker(testing::mapped_plan(), testing::tiny_models(), 1 << 20), 8);
  FusionPlan plan = testing::tiny_plan();
  plan.lane_model = {0, 1, 1, 1};
  plan.lane_adapter = {-1, 0, -1, 1};
  const Models models = {testing::tiny_model(1), testing::tiny_model(2)};
  const Adapters adapters = {{}, {testing::tiny_adapter(5, 3, true), testing::tiny_adapter(6, 7, false)}};
  testing::expect_put_back_requests_to_go_on(maker(plan, models, 1 << 20, adapters), 8);
  plan = testing::tiny_plan();
  plan.lane_model.push_back(4);
  plan.drafter = 4;
  Models five = testing::tiny_models();
  five.push_back(testing::tiny_model(9));
  testing::expect_put_back_requests_to_go_on(maker(plan, five, 1 << 20), 8, 5);
}

void what_can_never_fit_is_refused() {
  const auto loop = maker(testing::tiny_plan(), testing::tiny_models(), 0)(testing::tiny_cache_bytes(128));
  EXPECT_THROWS(loop->add(testing::make_request(1, 100, 30)));
  EXPECT(loop->idle());
  loop->add(testing::make_request(1, 100, 29));  // the last token is not read
  EXPECT(testing::run(*loop).at(1).size() == 29);
  ScoreRequest request = testing::score_request(1);
  request.continuations = {std::vector<int64_t>(120, 1)};
  EXPECT_THROWS(loop->score(request, [] {}));
  request.continuations = {std::vector<int64_t>(90, 1)};
  EXPECT(loop->score(request, [] {}).at(0).logprobs.size() == 90);
}

// Scoring takes memory from requests, which go on afterwards.
void scoring_puts_requests_back() {
  const auto make = maker(testing::tiny_plan(), testing::tiny_models(), 1 << 20);
  const auto plenty = make(0);
  const std::vector<Request> requests = testing::growing_requests(6);
  const testing::Outputs expected = testing::run_all(*plenty, requests);
  const std::vector<Score> scores = plenty->score(testing::score_request(1), [] {});
  const auto loop = make(testing::tiny_cache_bytes(256));
  for (const Request& request : requests) {
    loop->add(request);
  }
  testing::Outputs outputs;
  while (!loop->idle()) {
    testing::step(*loop, outputs);
    testing::expect_scores_near(loop->score(testing::score_request(1), [&] { testing::step(*loop, outputs); }), scores,
                                0);
  }
  EXPECT(outputs == expected && loop->put_back() > 10);
}

// Of two requests, the one with the lower priority begins and ends first; and it stays when memory runs out.
void the_lower_priority_goes_first() {
  const auto make = maker(testing::tiny_plan(), testing::tiny_models(), 0);
  const auto loop = make(testing::tiny_cache_bytes(192));
  std::vector<int64_t> ends;
  for (int64_t id = 0; id < 4; ++id) {
    Request request = testing::make_request(id, 60, 70);
    request.priority = -id;
    loop->add(request);
  }
  while (!loop->idle()) {
    for (const StepOutput* output : loop->step()) {
      if (output->finish != FinishReason::none) {
        ends.push_back(output->request);
      }
    }
  }
  EXPECT(ends == (std::vector<int64_t>{3, 2, 1, 0}) && loop->put_back() > 0);
}

}  // namespace
}  // namespace dlf

int main() {
  return dlf::testing::run({
      {"blocks are taken and given back", dlf::blocks_are_taken_and_given_back},
      {"whole blocks are shared and others copied", dlf::whole_blocks_are_shared_and_others_copied},
      {"slots keep their tokens apart", dlf::slots_keep_their_tokens_apart},
      {"sizes follow the options", dlf::sizes_follow_the_options},
      {"requests that are put back go on", dlf::requests_that_are_put_back_go_on},
      {"so do those with other lanes", dlf::so_do_those_with_other_lanes},
      {"what can never fit is refused", dlf::what_can_never_fit_is_refused},
      {"scoring puts requests back", dlf::scoring_puts_requests_back},
      {"the lower priority goes first", dlf::the_lower_priority_goes_first},
  });
}
