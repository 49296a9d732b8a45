#pragma once

#include <cstddef>
#include <cstdint>
#include <list>
#include <memory>
#include <span>
#include <unordered_map>
#include <vector>

namespace dlf {

// In place of the id of a piece that was not kept: what comes after it cannot be found.
inline constexpr int64_t kNoPiece = -1;

// Where a piece of a prompt stands: on which model, with which adapter, and after which other piece.
struct PiecePlace {
  int64_t model = 0;
  int64_t adapter = -1;
  int64_t after = 0;  // PrefixPiece::id; 0 at the beginning of a prompt

  bool operator==(const PiecePlace&) const = default;
};

// A piece of a prompt that was read, with its keys and values and, where a prompt ended with it, its logits.
struct PrefixPiece {
  int64_t id;
  PiecePlace place;
  std::vector<int64_t> tokens;
  std::unique_ptr<std::byte[]> memory;  // keys and values, then logits
  int64_t cache_bytes;
  int64_t logits_bytes;
  int64_t bytes;  // of all

  std::byte* cache() const { return memory.get(); }
  float* logits() const { return reinterpret_cast<float*>(memory.get() + cache_bytes); }
};

// What prompts have in common at their beginning is read once: the pieces that were read last, up to a number of bytes.
// A piece is found by its tokens and, through the piece before it, by all tokens before them: what is copied from here
// is to the bit what reading it again would give. The piece that was least recently used goes first, and never before
// those that come after it.
class PrefixCache {
 public:
  explicit PrefixCache(int64_t capacity) : capacity_(capacity) {}

  // Null where there is none, or none that has logits where they are needed. A piece holds until the next insert().
  const PrefixPiece* find(const PiecePlace& place, std::span<const int64_t> tokens, bool with_logits);

  // A place for a piece that is not there yet, to be filled; null where there is no room for it.
  const PrefixPiece* insert(const PiecePlace& place, std::span<const int64_t> tokens, int64_t cache_bytes,
                            int64_t logits_bytes);

  int64_t bytes() const { return bytes_; }
  int64_t capacity() const { return capacity_; }

 private:
  using Pieces = std::list<PrefixPiece>;

  static size_t hash(const PiecePlace& place, std::span<const int64_t> tokens);
  void touch(int64_t id);
  bool is_before(int64_t id, int64_t of) const;
  void evict_last();

  int64_t capacity_;
  int64_t bytes_ = 0;
  int64_t next_id_ = 1;
  Pieces pieces_;  // the most recently used first
  std::unordered_multimap<size_t, Pieces::iterator> by_hash_;
  std::unordered_map<int64_t, Pieces::iterator> by_id_;
};

}  // namespace dlf
