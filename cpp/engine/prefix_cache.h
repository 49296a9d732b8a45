#pragma once

#include <ATen/core/Tensor.h>

#include <cstddef>
#include <cstdint>
#include <functional>
#include <list>
#include <span>
#include <unordered_map>
#include <vector>

namespace dlf {

// Stands for a chunk that was not kept: chunks after it cannot be found.
inline constexpr int64_t kNoChunk = -1;

// Identifies a chunk of a prompt, together with its tokens: the model and the adapter that read it, and the chunk
// before.
struct ChunkKey {
  int64_t model = 0;
  int64_t adapter = -1;
  int64_t after = 0;  // PrefixChunk::id of the chunk before; 0 at the beginning of a prompt

  bool operator==(const ChunkKey&) const = default;
};

// Bytes of a chunk: its blocks of the KV cache, and its last logits, or 0.
struct ChunkBytes {
  int64_t cache;
  int64_t logits;
};

// A chunk of a prompt: where its keys and values are and, if a prompt ended with it, its last logits.
struct PrefixChunk {
  int64_t id;
  ChunkKey key;
  std::vector<int64_t> tokens;
  ChunkBytes bytes;
  std::vector<int32_t> blocks = {};  // of its model's KV cache
  at::Tensor logits = {};            // bytes, where the backend keeps them
  int64_t followers = 0;             // chunks after it
};

// Keeps the chunks that were used last, up to a number of bytes, so that a common beginning of prompts is read once. A
// chunk is found by its tokens and, through the chunk before it, by all tokens before them: its keys and values are
// bit-identical to reading it again. The least recently used chunk is evicted first, and never before those that come
// after it.
class PrefixCache {
 public:
  // `evicted` gets every evicted chunk.
  PrefixCache(int64_t capacity, std::function<void(PrefixChunk)> evicted)
      : capacity_(capacity), evicted_(std::move(evicted)) {}

  // Returns null if there is no such chunk, or none with logits when they are needed. The chunk is valid until one is
  // inserted or evicted.
  const PrefixChunk* find(const ChunkKey& key, std::span<const int64_t> tokens, bool with_logits);

  // Adds a chunk that is not there yet, after `fill` has put its blocks and logits in; returns null if there is no room
  // for it.
  const PrefixChunk* insert(const ChunkKey& key, std::span<const int64_t> tokens, const ChunkBytes& bytes,
                            const std::function<void(PrefixChunk&)>& fill);

  // Evicts the least recently used chunk of those that `may_leave`. Returns false if there is none.
  bool evict(const std::function<bool(const PrefixChunk&)>& may_leave);

  int64_t bytes() const { return bytes_; }
  int64_t capacity() const { return capacity_; }

 private:
  using Chunks = std::list<PrefixChunk>;

  static int64_t size(const PrefixChunk& chunk);
  static size_t hash(const ChunkKey& key, std::span<const int64_t> tokens);
  void touch(int64_t id);
  bool is_before(int64_t id, int64_t of) const;
  void evict(Chunks::iterator chunk);

  int64_t capacity_;
  std::function<void(PrefixChunk)> evicted_;
  int64_t bytes_ = 0;
  int64_t next_id_ = 1;
  Chunks chunks_;  // the most recently used first
  std::unordered_multimap<size_t, Chunks::iterator> by_hash_;
  std::unordered_map<int64_t, Chunks::iterator> by_id_;
};

}  // namespace dlf
