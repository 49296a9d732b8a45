#include "engine/prompt.h"

#include <algorithm>
#include <utility>

namespace dlf {
namespace {

constexpr int64_t kAgainTokens = 64;  // chosen tokens that a turn reads again

// Positions of a lane when it has read everything.
int64_t end_of(const Reading& reading, const Lane& lane) {
  return std::min(lane.prompt.size() + std::ssize(reading.chosen), lane.most);
}

}  // namespace

PromptReader::PromptReader(const FusionPlan& plan, std::vector<int64_t> block_bytes, CacheMemory& memory,
                           ChunkReader& chunks)
    : plan_(plan), block_bytes_(std::move(block_bytes)), memory_(memory), chunks_(chunks) {}

int64_t PromptReader::restore(const Reading& reading) {
  std::vector<Lane>& lanes = reading.lanes;
  for (size_t i = 0; i < lanes.size(); ++i) {
    while (chunks_left(reading, lanes[i]) > 1 && restore(reading, lanes[i], next(reading, i))) {
    }
  }
  const int64_t most = most_left(reading);
  int64_t tokens = 0;
  for (size_t i = 0; i < lanes.size(); ++i) {
    if (chunks_left(reading, lanes[i]) == most) {
      const Chunk chunk = next(reading, i);
      const bool cached = chunk.last && find(lanes[i], chunk) != nullptr;
      tokens = std::max(tokens, cached ? 0 : chunk.end - chunk.begin);
    }
  }
  return tokens;
}

bool PromptReader::read(const Reading& reading, int64_t rounds) {
  const int64_t most = most_left(reading);
  for (size_t i = 0; i < reading.lanes.size(); ++i) {
    read(reading, i, chunks_left(reading, reading.lanes[i]) - std::max<int64_t>(most - rounds, 0));
  }
  return most <= rounds;
}

// Reads the next `count` chunks of a lane, if any: those that the prefix cache lacks in passes of as many as may be.
void PromptReader::read(const Reading& reading, size_t index, int64_t count) {
  Lane& lane = reading.lanes[index];
  const auto read_pass = [&] {
    read_as_one(lane, pass_);
    pass_.clear();
  };
  pass_.clear();  // what an exception left
  for (; count > 0; --count) {
    const Chunk chunk = next(reading, index);
    if (pass_.empty() && restore(reading, lane, chunk)) {
      continue;
    }
    if (chunk.again || std::ssize(pass_) == chunks_.most_chunks()) {
      read_pass();
    }
    if (chunk.again) {
      read_again(lane, chunk);
    } else {
      lane.length = chunk.end;
      pass_.push_back(chunk);
    }
  }
  read_pass();
}

int64_t PromptReader::chunks_left(const Reading& reading, const Lane& lane) const {
  const int64_t again = end_of(reading, lane) - std::max(lane.length, lane.prompt.size());
  return lane.prompt.chunks_from(lane.length, chunks_.most_tokens()) + (again + kAgainTokens - 1) / kAgainTokens;
}

int64_t PromptReader::most_left(const Reading& reading) const {
  int64_t most = 1;  // unused lanes have none
  for (const Lane& lane : reading.lanes) {
    most = std::max(most, chunks_left(reading, lane));
  }
  return most;
}

Chunk PromptReader::next(const Reading& reading, size_t index) const {
  const Lane& lane = reading.lanes[index];
  const int64_t prompt = lane.prompt.size();
  const bool again = lane.length >= prompt;
  const int64_t end_of_all = end_of(reading, lane);
  const int64_t end = again ? std::min(lane.length + kAgainTokens, end_of_all)
                            : lane.prompt.chunk_end(lane.length, chunks_.most_tokens());
  const std::span<const int64_t> tokens =
      again ? reading.chosen.subspan(lane.length - prompt) : std::span(lane.prompt.tokens).subspan(lane.length);
  return {static_cast<int64_t>(index),     lane.cache_slot, lane.length,      end,
          tokens.first(end - lane.length), again,           end == end_of_all};
}

ChunkKey PromptReader::key(const Lane& lane, const Chunk& chunk) const {
  return {plan_.lane_model[chunk.lane], plan_.adapter_of(chunk.lane), lane.chunk};
}

// Returns a chunk of the prefix cache, or null.
const PrefixChunk* PromptReader::find(const Lane& lane, const Chunk& chunk) {
  return chunk.again ? nullptr : memory_.prefixes().find(key(lane, chunk), chunk.tokens, chunk.last);
}

// Shares a chunk with the prefix cache; returns false if it is not there.
bool PromptReader::restore(const Reading& reading, Lane& lane, const Chunk& chunk) {
  const PrefixChunk* cached = find(lane, chunk);
  if (cached == nullptr) {
    return false;
  }
  pool(chunk).share(chunk.cache_slot, chunk.begin, chunk.end, cached->blocks);
  if (chunk.last) {
    chunks_.restore_logits(chunk, cached->logits);
  }
  if (reading.cached_tokens != nullptr) {
    *reading.cached_tokens += chunk.end - chunk.begin;
  }
  lane.chunk = cached->id;
  lane.length = chunk.end;
  return true;
}

void PromptReader::read_again(Lane& lane, const Chunk& chunk) {
  pool(chunk).settle(chunk.cache_slot);
  lane.length = chunk.end;
  chunks_.read_again(chunk);
}

// Reads chunks that follow each other, and adds each to the prefix cache.
void PromptReader::read_as_one(Lane& lane, std::span<const Chunk> chunks) {
  if (chunks.empty()) {
    return;
  }
  const Chunk& first = chunks.front();
  const Chunk& last = chunks.back();
  pool(first).settle(first.cache_slot);
  Chunk all = first;
  all.end = last.end;
  all.tokens = {first.tokens.data(), static_cast<size_t>(last.end - first.begin)};
  all.last = last.last;
  chunks_.read(all);
  for (const Chunk& chunk : chunks) {
    keep(lane, chunk);
  }
}

// Adds a chunk that was read to the prefix cache.
void PromptReader::keep(Lane& lane, const Chunk& chunk) {
  const int64_t blocks = ops::blocks_for(chunk.end) - chunk.begin / ops::kCacheBlock;
  const ChunkBytes bytes = {blocks * block_bytes_[plan_.lane_model[chunk.lane]],
                            chunk.last ? chunks_.logits_bytes(chunk.lane) : 0};
  const PrefixChunk* kept = memory_.prefixes().insert(key(lane, chunk), chunk.tokens, bytes, [&](PrefixChunk& entry) {
    if (chunk.last) {
      entry.logits = chunks_.save_logits(chunk);
    }
    entry.blocks = pool(chunk).keep(chunk.cache_slot, chunk.begin, chunk.end);
  });
  lane.chunk = kept == nullptr ? kNoChunk : kept->id;
}

}  // namespace dlf
