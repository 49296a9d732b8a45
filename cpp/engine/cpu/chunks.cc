#include "engine/cpu/chunks.h"

#include <ATen/ops/empty.h>

#include <cstring>

#include "engine/timer.h"

namespace dlf::cpu {
void ChunkReader::read(const Chunk& chunk) {
  const Timer timer(seconds(chunk));
  last_logits_ = chunk.last ? model(chunk).add_logits(chunk.cache_slot) : nullptr;
  model(chunk).read(chunk.tokens, chunk.cache_slot, chunk.begin, last_logits_, /*all_logits=*/false,
                    plan_.adapter_of(chunk.lane));
}

void ChunkReader::read_again(const Chunk& chunk) {
  const Timer timer(seconds(chunk));
  float* logits = chunk.last ? model(chunk).add_logits(chunk.cache_slot) : nullptr;
  model(chunk).read_again(chunk.tokens, chunk.cache_slot, chunk.begin, logits, plan_.adapter_of(chunk.lane));
}

at::Tensor ChunkReader::save_logits(const Chunk& chunk) {
  at::Tensor logits = at::empty({logits_bytes(chunk.lane)}, at::kByte);
  std::memcpy(logits.mutable_data_ptr(), last_logits_, logits.nbytes());
  return logits;
}

void ChunkReader::restore_logits(const Chunk& chunk, const at::Tensor& from) {
  std::memcpy(model(chunk).add_logits(chunk.cache_slot), from.const_data_ptr(), from.nbytes());
}

}  // namespace dlf::cpu
