#include "engine/cpu/chunks.h"

#include <ATen/ops/empty.h>

#include <algorithm>

#include "engine/timer.h"

namespace dlf::cpu {

void ChunkReader::read(const Chunk& chunk) {
  const Timer timer(seconds(chunk));
  last_logits_ = chunk.last ? model(chunk).add_logits(chunk.cache_slot) : nullptr;
  model(chunk).read(chunk.tokens, chunk.cache_slot, chunk.begin, last_logits_, /*all_logits=*/false,
                    plan_.adapter_of(chunk.lane));
}

ChunkBytes ChunkReader::bytes(const Chunk& chunk) const {
  const int64_t vocab = chunk.last ? model(chunk).vocab() : 0;
  return {model(chunk).decoder().cache().bytes(chunk.end - chunk.begin), vocab * static_cast<int64_t>(sizeof(float))};
}

void ChunkReader::save(const Chunk& chunk, const PrefixChunk& to) {
  const Timer timer(seconds(chunk));
  model(chunk).decoder().cache().save(chunk.cache_slot, chunk.begin, chunk.end, to.cache(), team_);
  if (chunk.last) {
    std::copy_n(last_logits_, model(chunk).vocab(), to.logits());
  }
}

void ChunkReader::restore(const Chunk& chunk, const PrefixChunk& from) {
  const Timer timer(seconds(chunk));
  model(chunk).decoder().cache().restore(chunk.cache_slot, chunk.begin, chunk.end, from.cache(), team_);
  if (chunk.last) {
    std::copy_n(from.logits(), model(chunk).vocab(), model(chunk).add_logits(chunk.cache_slot));
  }
}

at::Tensor ChunkReader::allocate(int64_t /*lane*/, int64_t bytes) { return at::empty({bytes}, at::kByte); }

}  // namespace dlf::cpu
