#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <span>
#include <vector>

#include "engine/plan.h"
#include "engine/prefix_cache.h"
#include "engine/sequence.h"

namespace dlf {

// A part of a prompt that a lane reads in one pass.
struct Chunk {
  int64_t lane;  // of the plan
  int64_t cache_slot;
  int64_t begin, end;  // positions
  std::span<const int64_t> tokens;
  bool last;  // the prompt ends with it, so that its last logits are needed
};

// Reads, saves and restores chunks on a backend. Queued work is done in the order of the calls.
class ChunkReader {
 public:
  virtual ~ChunkReader() = default;

  // Called before and after the chunks that are read or restored between two steps.
  virtual void begin() {}
  virtual void end() {}

  virtual int64_t most_tokens() const = 0;    // of a chunk
  virtual void read(const Chunk& chunk) = 0;  // into the cache of its model
  virtual ChunkBytes bytes(const Chunk& chunk) const = 0;
  virtual void save(const Chunk& chunk, const PrefixChunk& to) = 0;
  virtual void restore(const Chunk& chunk, const PrefixChunk& from) = 0;

  // Allocates memory on the device of a lane's model; releases it once no queued work needs it.
  virtual at::Tensor allocate(int64_t lane, int64_t bytes) = 0;
  virtual void release(at::Tensor memory) = 0;
};

// Reads prompts into the caches of their models, round by round: one chunk of each lane with the most chunks left.
// Shorter prompts of a request wait, so that the last logits of all its lanes come in the same step; a later step would
// overwrite them.
class PromptReader {
 public:
  PromptReader(const FusionPlan& plan, int64_t prefix_cache_bytes, ChunkReader& chunks);

  void begin() { chunks_.begin(); }
  void end() { chunks_.end(); }

  // Copies the chunks that the prefix cache has, up to the last ones, and counts their tokens. Returns how many tokens
  // of a lane the next round has to read; 0 if the prefix cache has the last chunks, too.
  int64_t restore(std::vector<Lane>& lanes, int64_t& cached_tokens);

  // Reads one round, after restore(). Returns true when the last logits of all lanes are there or queued.
  bool read(std::vector<Lane>& lanes, int64_t& cached_tokens);

 private:
  int64_t chunks_left(const Lane& lane) const;
  int64_t most_left(const std::vector<Lane>& lanes) const;
  Chunk next(const std::vector<Lane>& lanes, size_t lane) const;
  ChunkKey key(const Lane& lane, const Chunk& chunk) const;
  bool restore(Lane& lane, const Chunk& chunk, int64_t& cached_tokens);
  void read(Lane& lane, const Chunk& chunk);

  const FusionPlan& plan_;
  PrefixCache prefixes_;
  ChunkReader& chunks_;
};

}  // namespace dlf
