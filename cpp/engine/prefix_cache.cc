#include "engine/prefix_cache.h"

#include <algorithm>

namespace dlf {

size_t PrefixCache::hash(const PiecePlace& place, std::span<const int64_t> tokens) {
  uint64_t sum = 0x9e3779b97f4a7c15;
  const auto mix = [&](int64_t value) {  // the finisher of SplitMix64, in a chain
    sum = (sum ^ static_cast<uint64_t>(value)) * 0xbf58476d1ce4e5b9;
    sum ^= sum >> 29;
  };
  mix(place.model);
  mix(place.adapter);
  mix(place.after);
  for (const int64_t token : tokens) {
    mix(token);
  }
  return sum;
}

const PrefixPiece* PrefixCache::find(const PiecePlace& place, std::span<const int64_t> tokens, bool with_logits) {
  const auto [begin, end] = by_hash_.equal_range(hash(place, tokens));
  for (auto candidate = begin; candidate != end; ++candidate) {
    const PrefixPiece& piece = *candidate->second;
    if (piece.place == place && (piece.logits_bytes > 0 || !with_logits) &&
        std::equal(tokens.begin(), tokens.end(), piece.tokens.begin(), piece.tokens.end())) {
      touch(piece.id);
      return &piece;
    }
  }
  return nullptr;
}

const PrefixPiece* PrefixCache::insert(const PiecePlace& place, std::span<const int64_t> tokens, int64_t cache_bytes,
                                       int64_t logits_bytes) {
  const int64_t bytes = cache_bytes + logits_bytes + static_cast<int64_t>(tokens.size() * sizeof(int64_t));
  if (bytes > capacity_ || (place.after != 0 && !by_id_.contains(place.after))) {
    return nullptr;  // without the piece before it nobody would find it
  }
  touch(place.after);
  while (bytes_ + bytes > capacity_) {
    if (is_before(pieces_.back().id, place.after)) {
      return nullptr;
    }
    evict_last();
  }
  pieces_.push_front({next_id_++,
                      place,
                      {tokens.begin(), tokens.end()},
                      std::make_unique_for_overwrite<std::byte[]>(cache_bytes + logits_bytes),
                      cache_bytes,
                      logits_bytes,
                      bytes});
  bytes_ += bytes;
  const PrefixPiece& piece = pieces_.front();
  by_hash_.emplace(hash(place, tokens), pieces_.begin());
  by_id_[piece.id] = pieces_.begin();
  touch(piece.id);
  return &piece;
}

// The piece, and then those before it, become the most recently used: a piece is older than what comes before it.
void PrefixCache::touch(int64_t id) {
  for (auto found = by_id_.find(id); found != by_id_.end(); found = by_id_.find(id)) {
    pieces_.splice(pieces_.begin(), pieces_, found->second);
    id = found->second->place.after;
  }
}

// Whether a piece is `of` or comes before it.
bool PrefixCache::is_before(int64_t id, int64_t of) const {
  for (auto found = by_id_.find(of); found != by_id_.end(); found = by_id_.find(found->second->place.after)) {
    if (found->first == id) {
      return true;
    }
  }
  return false;
}

void PrefixCache::evict_last() {
  const auto last = std::prev(pieces_.end());
  const auto [begin, end] = by_hash_.equal_range(hash(last->place, last->tokens));
  by_hash_.erase(std::find_if(begin, end, [&](const auto& entry) { return entry.second == last; }));
  by_id_.erase(last->id);
  bytes_ -= last->bytes;
  pieces_.erase(last);
}

}  // namespace dlf
