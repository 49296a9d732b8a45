#include "engine/cpu/prompts.h"

#include <algorithm>

#include "engine/step_loop.h"
#include "engine/timer.h"

namespace dlf {
namespace {

int64_t pieces_left(const Lane& lane) { return lane.prompt.pieces_from(lane.length, Decoder::kPrefillRows); }

}  // namespace

PromptReader::PromptReader(const FusionPlan& plan, std::vector<CpuModel>& models, int64_t prefix_cache_bytes,
                           ThreadTeam& team)
    : plan_(plan), models_(models), team_(team), prefixes_(prefix_cache_bytes) {}

// A shorter prompt waits with its pieces, so that the last logits of all lanes come in the same step.
bool PromptReader::read(std::vector<Lane>& lanes, int64_t& cached_tokens, StepTimings& timings) {
  int64_t most = 0;
  for (size_t i = 0; i < lanes.size(); ++i) {
    while (pieces_left(lanes[i]) > 1 && restore(place(lanes, i), cached_tokens)) {
    }
    most = std::max(most, pieces_left(lanes[i]));
  }
  for (size_t i = 0; i < lanes.size(); ++i) {
    if (pieces_left(lanes[i]) < most) {
      continue;
    }
    const Timer timer(plan_.lane_model[i] == plan_.lane_model[0] ? timings.large : timings.small);
    const Place next = place(lanes, i);
    if (!restore(next, cached_tokens)) {
      read(next);
    }
  }
  return most <= 1;
}

PromptReader::Place PromptReader::place(std::vector<Lane>& lanes, size_t index) const {
  Lane& lane = lanes[index];
  const int64_t end = lane.prompt.piece_end(lane.length, Decoder::kPrefillRows);
  return {models_[plan_.lane_model[index]],
          lane,
          {plan_.lane_model[index], plan_.adapter_of(static_cast<int64_t>(index)), lane.piece},
          std::span(lane.prompt.tokens).subspan(lane.length, end - lane.length),
          end,
          end == static_cast<int64_t>(lane.prompt.tokens.size())};
}

// The piece is then there for others.
void PromptReader::read(const Place& place) {
  Lane& lane = place.lane;
  KVCache& cache = place.model.decoder->cache();
  float* logits = place.last ? place.model.add_logits(lane) : nullptr;
  place.model.decoder->prefill(place.tokens, lane.slot, lane.length, logits, /*all_logits=*/false, place.key.adapter);
  const int64_t vocab = place.last ? place.model.vocab() : 0;
  std::vector<at::Tensor> evicted;
  const PieceBytes bytes = {cache.bytes(place.end - lane.length), vocab * static_cast<int64_t>(sizeof(float))};
  const PrefixPiece* piece = prefixes_.insert(place.key, place.tokens, bytes, at::kCPU, evicted);
  if (piece != nullptr) {
    cache.save(lane.slot, lane.length, place.end, piece->cache(), team_);
    std::copy_n(logits, vocab, piece->logits());
  }
  lane.piece = piece == nullptr ? kNoPiece : piece->id;
  lane.length = place.end;
}

// Takes the piece from the prefix cache, if it has it.
bool PromptReader::restore(const Place& place, int64_t& cached_tokens) {
  Lane& lane = place.lane;
  const PrefixPiece* piece = prefixes_.find(place.key, place.tokens, place.last);
  if (piece == nullptr) {
    return false;
  }
  place.model.decoder->cache().restore(lane.slot, lane.length, place.end, piece->cache(), team_);
  if (place.last) {
    std::copy_n(piece->logits(), place.model.vocab(), place.model.add_logits(lane));
  }
  cached_tokens += place.end - lane.length;
  lane.piece = piece->id;
  lane.length = place.end;
  return true;
}

}  // namespace dlf
