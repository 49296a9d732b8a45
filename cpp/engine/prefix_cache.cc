#include "engine/prefix_cache.h"

#include <algorithm>

namespace dlf {

int64_t PrefixCache::size(const PrefixChunk& chunk) {
  return chunk.bytes.cache + chunk.bytes.logits + static_cast<int64_t>(chunk.tokens.size() * sizeof(int64_t));
}

size_t PrefixCache::hash(const ChunkKey& key, std::span<const int64_t> tokens) {
  uint64_t sum = 0x9e3779b97f4a7c15;
  const auto mix = [&](int64_t value) {  // the finisher of SplitMix64, in a chain
    sum = (sum ^ static_cast<uint64_t>(value)) * 0xbf58476d1ce4e5b9;
    sum ^= sum >> 29;
  };
  mix(key.model);
  mix(key.adapter);
  mix(key.after);
  for (const int64_t token : tokens) {
    mix(token);
  }
  return sum;
}

const PrefixChunk* PrefixCache::find(const ChunkKey& key, std::span<const int64_t> tokens, bool with_logits) {
  const auto [begin, end] = by_hash_.equal_range(hash(key, tokens));
  for (auto candidate = begin; candidate != end; ++candidate) {
    const PrefixChunk& chunk = *candidate->second;
    if (chunk.key == key && (chunk.bytes.logits > 0 || !with_logits) &&
        std::equal(tokens.begin(), tokens.end(), chunk.tokens.begin(), chunk.tokens.end())) {
      touch(chunk.id);
      return &chunk;
    }
  }
  return nullptr;
}

const PrefixChunk* PrefixCache::insert(const ChunkKey& key, std::span<const int64_t> tokens, const ChunkBytes& bytes,
                                       const std::function<void(PrefixChunk&)>& fill) {
  PrefixChunk chunk = {next_id_++, key, {tokens.begin(), tokens.end()}, bytes};
  if (size(chunk) > capacity_ || (key.after != 0 && !by_id_.contains(key.after))) {
    return nullptr;  // without the chunk before it, it could not be found
  }
  touch(key.after);
  while (bytes_ + size(chunk) > capacity_) {
    if (is_before(chunks_.back().id, key.after)) {
      return nullptr;
    }
    evict(std::prev(chunks_.end()));
  }
  Chunks added;  // moves to chunks_ once both maps have it
  added.push_front(std::move(chunk));
  const auto by_id = by_id_.emplace(added.front().id, added.begin()).first;
  auto by_hash = by_hash_.end();
  try {
    by_hash = by_hash_.emplace(hash(key, tokens), added.begin());
    fill(added.front());
  } catch (...) {
    if (by_hash != by_hash_.end()) {
      by_hash_.erase(by_hash);
    }
    by_id_.erase(by_id);
    throw;
  }
  bytes_ += size(added.front());
  if (const auto before = by_id_.find(key.after); before != by_id_.end()) {
    ++before->second->followers;
  }
  chunks_.splice(chunks_.begin(), added);
  const PrefixChunk& kept = *by_id->second;
  touch(kept.id);
  return &kept;
}

bool PrefixCache::evict(const std::function<bool(const PrefixChunk&)>& may_leave) {
  const auto found = std::find_if(chunks_.rbegin(), chunks_.rend(),
                                  [&](const PrefixChunk& chunk) { return chunk.followers == 0 && may_leave(chunk); });
  if (found == chunks_.rend()) {
    return false;
  }
  evict(std::prev(found.base()));
  return true;
}

// Makes a chunk and those before it the most recently used. An earlier chunk ends up as more recent than the one after
// it.
void PrefixCache::touch(int64_t id) {
  for (auto found = by_id_.find(id); found != by_id_.end(); found = by_id_.find(id)) {
    chunks_.splice(chunks_.begin(), chunks_, found->second);
    id = found->second->key.after;
  }
}

// Returns whether chunk `id` is `of` or comes before it.
bool PrefixCache::is_before(int64_t id, int64_t of) const {
  for (auto found = by_id_.find(of); found != by_id_.end(); found = by_id_.find(found->second->key.after)) {
    if (found->first == id) {
      return true;
    }
  }
  return false;
}

void PrefixCache::evict(Chunks::iterator chunk) {
  const auto [begin, end] = by_hash_.equal_range(hash(chunk->key, chunk->tokens));
  by_hash_.erase(std::find_if(begin, end, [&](const auto& entry) { return entry.second == chunk; }));
  by_id_.erase(chunk->id);
  if (const auto before = by_id_.find(chunk->key.after); before != by_id_.end()) {
    --before->second->followers;
  }
  bytes_ -= size(*chunk);
  PrefixChunk evicted = std::move(*chunk);
  chunks_.erase(chunk);
  evicted_(std::move(evicted));
}

}  // namespace dlf
