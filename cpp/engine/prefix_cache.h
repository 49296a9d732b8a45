#pragma once

#include <ATen/core/Tensor.h>

#include <cstddef>
#include <cstdint>
#include <list>
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

// Of a piece's memory: keys and values, a multiple of four, and logits, if any.
struct PieceBytes {
  int64_t cache;
  int64_t logits;
};

// A piece of a prompt that was read, with its keys and values and, where a prompt ended with it, its logits.
struct PrefixPiece {
  int64_t id;
  PiecePlace place;
  std::vector<int64_t> tokens;
  at::Tensor memory;  // on the model's device: keys and values, then logits
  PieceBytes bytes;

  std::byte* cache() const { return static_cast<std::byte*>(memory.data_ptr()); }
  float* logits() const { return reinterpret_cast<float*>(cache() + bytes.cache); }
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

  // A place for a piece that is not there yet, on a device, to be filled; null where there is no room for it. Memory
  // of the pieces that go is added to `evicted`: a device may still be copying from it.
  const PrefixPiece* insert(const PiecePlace& place, std::span<const int64_t> tokens, const PieceBytes& bytes,
                            const at::TensorOptions& device, std::vector<at::Tensor>& evicted);

  int64_t bytes() const { return bytes_; }
  int64_t capacity() const { return capacity_; }

 private:
  using Pieces = std::list<PrefixPiece>;

  static int64_t size(const PrefixPiece& piece);
  static size_t hash(const PiecePlace& place, std::span<const int64_t> tokens);
  void touch(int64_t id);
  bool is_before(int64_t id, int64_t of) const;
  at::Tensor evict_last();

  int64_t capacity_;
  int64_t bytes_ = 0;
  int64_t next_id_ = 1;
  Pieces pieces_;  // the most recently used first
  std::unordered_multimap<size_t, Pieces::iterator> by_hash_;
  std::unordered_map<int64_t, Pieces::iterator> by_id_;
};

}  // namespace dlf
