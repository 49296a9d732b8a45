#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <span>
#include <vector>

#include "engine/cache_memory.h"
#include "engine/plan.h"
#include "engine/sequence.h"

namespace dlf {

// A part of a context that a lane reads in one turn.
struct Chunk {
  int64_t lane;  // of the plan
  int64_t cache_slot;
  int64_t begin, end;  // positions
  std::span<const int64_t> tokens;
  bool again;  // they were chosen before, and have the large model's ids
  bool last;   // nothing follows, so that the last logits are needed
};

// Reads chunks on a backend. Queued work is done in the order of the calls.
class ChunkReader {
 public:
  virtual ~ChunkReader() = default;

  // Called before and after the chunks that are read or restored between two steps.
  virtual void begin() {}
  virtual void end() {}

  virtual int64_t most_tokens() const = 0;           // of a chunk
  virtual int64_t most_chunks() const { return 1; }  // that read() takes as one, without changing a bit
  virtual void read(const Chunk& chunk) = 0;         // into the cache of its model
  // Reads chosen tokens again, bit-identical to steps that read them one by one.
  virtual void read_again(const Chunk& chunk) = 0;

  // Copies the last logits of the chunk that was read last, and back for a chunk that is not read.
  virtual int64_t logits_bytes(int64_t lane) const = 0;
  virtual at::Tensor save_logits(const Chunk& chunk) = 0;
  virtual void restore_logits(const Chunk& chunk, const at::Tensor& from) = 0;
  virtual void release(at::Tensor logits) = 0;  // frees them once no queued work needs them
};

// Reads prompts into the caches of their models, round by round: one chunk of each lane with the most chunks left.
// Shorter prompts of a request wait, so that the last logits of all its lanes come in the same step; a later step would
// overwrite them. Several rounds may share a pass over the weights.
class PromptReader {
 public:
  // `block_bytes`: of each model's KV cache.
  PromptReader(const FusionPlan& plan, std::vector<int64_t> block_bytes, CacheMemory& memory, ChunkReader& chunks);

  void begin() { chunks_.begin(); }
  void end() { chunks_.end(); }

  // Shares the chunks that the prefix cache has, up to the last ones. Returns how many tokens of a lane the next round
  // has to read; 0 if the prefix cache has the last chunks, too.
  int64_t restore(const Reading& reading);

  // Rounds that may share a pass.
  int64_t most_rounds() const { return chunks_.most_chunks(); }

  // Reads rounds, after restore(), into lanes with room for them. Returns true when the last logits of all lanes are
  // there or queued.
  bool read(const Reading& reading, int64_t rounds);

  // Lets lanes that have read their prompts read further tokens.
  void settle(std::span<const Lane> lanes) { memory_.settle(lanes); }

 private:
  int64_t chunks_left(const Reading& reading, const Lane& lane) const;
  int64_t most_left(const Reading& reading) const;
  Chunk next(const Reading& reading, size_t lane) const;
  ChunkKey key(const Lane& lane, const Chunk& chunk) const;
  const PrefixChunk* find(const Lane& lane, const Chunk& chunk);
  bool restore(const Reading& reading, Lane& lane, const Chunk& chunk);
  void read(const Reading& reading, size_t lane, int64_t count);
  void read_again(Lane& lane, const Chunk& chunk);
  void read_as_one(Lane& lane, std::span<const Chunk> chunks);
  void keep(Lane& lane, const Chunk& chunk);
  BlockPool& pool(const Chunk& chunk) { return memory_.pool(plan_.lane_model[chunk.lane]); }

  const FusionPlan& plan_;
  std::vector<int64_t> block_bytes_;  // of each model
  CacheMemory& memory_;
  ChunkReader& chunks_;
  std::vector<Chunk> pass_;
};

}  // namespace dlf
