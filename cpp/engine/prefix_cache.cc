#include "engine/prefix_cache.h"

#include <ATen/ops/empty.h>

#include <algorithm>

namespace dlf {

int64_t PrefixCache::size(const PrefixPiece& piece) {
  return piece.bytes.cache + piece.bytes.logits + static_cast<int64_t>(piece.tokens.size() * sizeof(int64_t));
}

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
    if (piece.place == place && (piece.bytes.logits > 0 || !with_logits) &&
        std::equal(tokens.begin(), tokens.end(), piece.tokens.begin(), piece.tokens.end())) {
      touch(piece.id);
      return &piece;
    }
  }
  return nullptr;
}

const PrefixPiece* PrefixCache::insert(const PiecePlace& place, std::span<const int64_t> tokens,
                                       const PieceBytes& bytes, const at::TensorOptions& device,
                                       std::vector<at::Tensor>& evicted) {
  PrefixPiece piece = {next_id_++, place, {tokens.begin(), tokens.end()}, {}, bytes};
  if (size(piece) > capacity_ || (place.after != 0 && !by_id_.contains(place.after))) {
    return nullptr;  // without the piece before it nobody would find it
  }
  touch(place.after);
  while (bytes_ + size(piece) > capacity_) {
    if (is_before(pieces_.back().id, place.after)) {
      return nullptr;
    }
    evicted.push_back(evict_last());
  }
  piece.memory = at::empty({bytes.cache + bytes.logits}, device.dtype(at::kByte));
  Pieces added;  // becomes one of the others when it can be found in both ways
  added.push_front(std::move(piece));
  const auto by_id = by_id_.emplace(added.front().id, added.begin()).first;
  try {
    by_hash_.emplace(hash(place, tokens), added.begin());
  } catch (...) {
    by_id_.erase(by_id);
    throw;
  }
  bytes_ += size(added.front());
  pieces_.splice(pieces_.begin(), added);
  const PrefixPiece& kept = *by_id->second;
  touch(kept.id);
  return &kept;
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

at::Tensor PrefixCache::evict_last() {
  const auto last = std::prev(pieces_.end());
  const auto [begin, end] = by_hash_.equal_range(hash(last->place, last->tokens));
  by_hash_.erase(std::find_if(begin, end, [&](const auto& entry) { return entry.second == last; }));
  by_id_.erase(last->id);
  bytes_ -= size(*last);
  at::Tensor memory = std::move(last->memory);
  pieces_.erase(last);
  return memory;
}

}  // namespace dlf
