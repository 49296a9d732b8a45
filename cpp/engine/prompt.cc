#include "engine/prompt.h"

#include <algorithm>
#include <utility>

namespace dlf {

PromptReader::PromptReader(const FusionPlan& plan, int64_t prefix_cache_bytes, ChunkReader& chunks)
    : plan_(plan), prefixes_(prefix_cache_bytes), chunks_(chunks) {}

int64_t PromptReader::restore(std::vector<Lane>& lanes, int64_t& cached_tokens) {
  for (size_t i = 0; i < lanes.size(); ++i) {
    while (chunks_left(lanes[i]) > 1 && restore(lanes[i], next(lanes, i), cached_tokens)) {
    }
  }
  const int64_t most = most_left(lanes);
  int64_t tokens = 0;
  for (size_t i = 0; i < lanes.size(); ++i) {
    if (chunks_left(lanes[i]) == most) {
      const Chunk chunk = next(lanes, i);
      const bool cached = chunk.last && prefixes_.find(key(lanes[i], chunk), chunk.tokens, chunk.last) != nullptr;
      tokens = std::max(tokens, cached ? 0 : chunk.end - chunk.begin);
    }
  }
  return tokens;
}

bool PromptReader::read(std::vector<Lane>& lanes, int64_t& cached_tokens) {
  const int64_t most = most_left(lanes);
  for (size_t i = 0; i < lanes.size(); ++i) {
    if (chunks_left(lanes[i]) == most) {
      const Chunk chunk = next(lanes, i);
      if (!restore(lanes[i], chunk, cached_tokens)) {
        read(lanes[i], chunk);
      }
    }
  }
  return most == 1;
}

int64_t PromptReader::chunks_left(const Lane& lane) const {
  return lane.prompt.chunks_from(lane.length, chunks_.most_tokens());
}

int64_t PromptReader::most_left(const std::vector<Lane>& lanes) const {
  int64_t most = 1;  // unused lanes have none
  for (const Lane& lane : lanes) {
    most = std::max(most, chunks_left(lane));
  }
  return most;
}

Chunk PromptReader::next(const std::vector<Lane>& lanes, size_t index) const {
  const Lane& lane = lanes[index];
  const int64_t end = lane.prompt.chunk_end(lane.length, chunks_.most_tokens());
  return {static_cast<int64_t>(index),
          lane.cache_slot,
          lane.length,
          end,
          std::span(lane.prompt.tokens).subspan(lane.length, end - lane.length),
          end == lane.prompt.size()};
}

ChunkKey PromptReader::key(const Lane& lane, const Chunk& chunk) const {
  return {plan_.lane_model[chunk.lane], plan_.adapter_of(chunk.lane), lane.chunk};
}

// Copies a chunk from the prefix cache; returns false if it is not there.
bool PromptReader::restore(Lane& lane, const Chunk& chunk, int64_t& cached_tokens) {
  const PrefixChunk* cached = prefixes_.find(key(lane, chunk), chunk.tokens, chunk.last);
  if (cached == nullptr) {
    return false;
  }
  chunks_.restore(chunk, *cached);
  cached_tokens += chunk.end - chunk.begin;
  lane.chunk = cached->id;
  lane.length = chunk.end;
  return true;
}

// Reads a chunk, and adds it to the prefix cache.
void PromptReader::read(Lane& lane, const Chunk& chunk) {
  chunks_.read(chunk);
  const PrefixChunk* kept = prefixes_.insert(
      key(lane, chunk), chunk.tokens, chunks_.bytes(chunk),
      [&](int64_t bytes) { return chunks_.allocate(chunk.lane, bytes); },
      [&](at::Tensor memory) { chunks_.release(std::move(memory)); });
  if (kept != nullptr) {
    chunks_.save(chunk, *kept);
  }
  lane.chunk = kept == nullptr ? kNoChunk : kept->id;
  lane.length = chunk.end;
}

}  // namespace dlf
