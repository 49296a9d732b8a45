// Tests the prefix cache: which chunks it keeps, for how long, and that results are the same with and without it.
#include "engine/prefix_cache.h"

#include <numeric>

#include "check.h"
#include "engine/cpu/step_loop.h"
#include "tiny_family.h"

namespace dlf {
namespace {

using testing::Tokens;

using Ids = std::vector<int64_t>;

constexpr int64_t kChunkBytes = 100 + 2 * sizeof(int64_t);

PrefixCache make_cache(int64_t capacity) {
  return {capacity, [](const PrefixChunk&) {}};
}

const PrefixChunk* insert(PrefixCache& cache, const ChunkKey& key, const Ids& tokens, const ChunkBytes& bytes) {
  return cache.insert(key, tokens, bytes, [](PrefixChunk&) {});
}

const PrefixChunk* insert(PrefixCache& cache, int64_t after, const Ids& tokens, int64_t adapter = -1) {
  return insert(cache, {0, adapter, after}, tokens, {100, 0});
}

void a_chunk_is_found_by_all_that_comes_before_it() {
  PrefixCache cache = make_cache(1000);
  const int64_t first = insert(cache, 0, {1, 2})->id;
  const int64_t second = insert(cache, first, {3, 4})->id;
  const auto id = [&](const ChunkKey& key, const Ids& tokens, bool with_logits = false) {
    const PrefixChunk* chunk = cache.find(key, tokens, with_logits);
    return chunk == nullptr ? 0 : chunk->id;
  };
  EXPECT(id({0, -1, 0}, {1, 2}) == first);
  EXPECT(id({0, -1, first}, {3, 4}) == second);
  EXPECT(id({0, -1, 0}, {3, 4}) == 0);        // at the beginning
  EXPECT(id({0, -1, first}, {3}) == 0);       // a part of the chunk
  EXPECT(id({0, 0, 0}, {1, 2}) == 0);         // with an adapter
  EXPECT(id({1, -1, 0}, {1, 2}) == 0);        // on another model
  EXPECT(id({0, -1, 0}, {1, 2}, true) == 0);  // without logits
  const int64_t ends = insert(cache, {0, -1, first}, {3, 4}, {100, 40})->id;
  EXPECT(id({0, -1, first}, {3, 4}, true) == ends);
  EXPECT(id({0, -1, kNoChunk}, {1, 2}) == 0);  // after a chunk that was not kept
}

void the_least_recently_used_goes_first_and_never_before_what_follows_it() {
  PrefixCache cache = make_cache(3 * kChunkBytes);
  const int64_t old = insert(cache, 0, {1, 2})->id;
  insert(cache, old, {3, 4});
  insert(cache, 0, {5, 6});
  EXPECT(cache.bytes() == 3 * kChunkBytes);
  cache.find({0, -1, 0}, Ids{5, 6}, false);
  EXPECT(insert(cache, 0, {7, 8}) != nullptr);  // replaces the chunk after `old`
  EXPECT(cache.find({0, -1, old}, Ids{3, 4}, false) == nullptr);
  EXPECT(cache.find({0, -1, 0}, Ids{1, 2}, false) != nullptr);
  EXPECT(insert(cache, 0, {9, 10}) != nullptr);
  EXPECT(cache.find({0, -1, 0}, Ids{5, 6}, false) == nullptr);
  EXPECT(cache.bytes() == 3 * kChunkBytes);
}

void what_does_not_fit_is_not_kept() {
  PrefixCache cache = make_cache(2 * kChunkBytes);
  EXPECT(insert(cache, {0, -1, 0}, {1}, {1000, 0}) == nullptr);
  const int64_t first = insert(cache, 0, {1, 2})->id;
  const int64_t second = insert(cache, first, {3, 4})->id;
  EXPECT(insert(cache, second, {5, 6}) == nullptr);  // would replace its own beginning
  EXPECT(cache.find({0, -1, first}, Ids{3, 4}, false) != nullptr);
  EXPECT(insert(cache, kNoChunk, {5, 6}) == nullptr);
  EXPECT(make_cache(0).find({0, -1, 0}, Ids{1}, false) == nullptr);
}

void chunks_end_at_breaks() {
  Prompt prompt;
  prompt.tokens.resize(700, 1);
  prompt.breaks = {0, 300, 300, 700, 900};
  EXPECT(prompt.chunk_end(0, 256) == 256);
  EXPECT(prompt.chunk_end(256, 256) == 300);
  EXPECT(prompt.chunk_end(300, 256) == 556);
  EXPECT(prompt.chunk_end(556, 256) == 700);
  EXPECT(prompt.chunks_from(0, 256) == 4);
  EXPECT(prompt.chunks_from(700, 256) == 0);
}

struct Decoded {
  Tokens tokens;
  int64_t cached = 0;
};

Decoded decode(int64_t prefix_cache_bytes, int64_t max_batch) {
  const auto loop =
      cpu::make_step_loop(testing::tiny_plan(), testing::tiny_models(), {max_batch, 1100, 2, prefix_cache_bytes});
  loop->add(testing::shared_request(100, 640, 9));
  loop->step();
  loop->cancel(100);  // in the middle of its prompt
  for (int64_t id = 0; id < 6; ++id) {
    Request request = testing::shared_request(id, 600 + 40 * (id % 2), 3 + 20 * (id % 3));
    request.rule.combine = Combine::centroid;
    loop->add(std::move(request));
  }
  Decoded decoded;
  while (!loop->idle()) {
    for (const StepOutput* output : loop->step()) {
      decoded.tokens[output->request].push_back(output->token);
      decoded.cached += output->finish == FinishReason::none ? 0 : output->cached_tokens;
    }
  }
  return decoded;
}

void it_changes_nothing() {
  const Decoded without = decode(0, 1);
  EXPECT(without.tokens.size() == 6 && without.cached == 0);
  for (const int64_t max_batch : {1, 2, 5}) {
    EXPECT(decode(1 << 24, max_batch).tokens == without.tokens);
    EXPECT(decode(300000, max_batch).tokens == without.tokens);  // too little for all
    EXPECT(decode(60000, max_batch).tokens == without.tokens);
  }
  // The expert's examples are read once for each of two lengths; their first 512 tokens are the same.
  const int64_t expert = 2 * 600 + 3 * 640 + 512;
  EXPECT(decode(1 << 24, 1).cached >= expert && decode(1 << 24, 5).cached >= expert - 640);
}

}  // namespace
}  // namespace dlf

int main() {
  return dlf::testing::run({
      {"a chunk is found by all that comes before it", dlf::a_chunk_is_found_by_all_that_comes_before_it},
      {"the least recently used goes first and never before what follows it",
       dlf::the_least_recently_used_goes_first_and_never_before_what_follows_it},
      {"what does not fit is not kept", dlf::what_does_not_fit_is_not_kept},
      {"chunks end at breaks", dlf::chunks_end_at_breaks},
      {"it changes nothing", dlf::it_changes_nothing},
  });
}
