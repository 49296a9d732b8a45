#include "engine/cuda/prompts.h"

#include <ATen/ops/empty.h>

#include <algorithm>
#include <span>

namespace dlf::cuda {
namespace {

int64_t pieces_left(const DeviceLane& lane) { return lane.prompt.pieces_from(lane.length, Decoder::kPrefillRows); }

int64_t vocab_bytes(const DeviceModel& model) { return model.decoder->vocab() * static_cast<int64_t>(sizeof(float)); }

}  // namespace

PromptReader::PromptReader(const FusionPlan& plan, std::vector<DeviceModel>& models, int64_t prefix_cache_bytes)
    : plan_(plan), models_(models), prefixes_(prefix_cache_bytes) {
  begun_ = std::make_unique<Event>(models[plan.lane_model[0]].queue->device());
}

// A shorter prompt waits with its pieces: the last logits of all lanes must come right before the sequence starts,
// because steps of other sequences overwrite them.
bool PromptReader::read(std::vector<DeviceLane>& lanes, int row, int64_t step, int64_t& cached_tokens) {
  Queue& main = *models_[plan_.lane_model[0]].queue;
  begun_->record(main);
  evicted_.push_back({step, {}});
  for (const int64_t model : plan_.lane_model) {
    models_[model].queue->wait(*begun_);  // steps on their way use the same buffers
  }
  int64_t most = 0;
  for (size_t i = 0; i < lanes.size(); ++i) {
    while (pieces_left(lanes[i]) > 1 && restore(place(lanes, i, row), cached_tokens)) {
    }
    most = std::max(most, pieces_left(lanes[i]));
  }
  for (size_t i = 0; i < lanes.size(); ++i) {
    if (pieces_left(lanes[i]) < most) {
      continue;
    }
    const Place next = place(lanes, i, row);
    if (!restore(next, cached_tokens)) {
      read(next);
    }
    if (next.last) {
      publish(next);
    }
  }
  for (size_t i = 0; i < lanes.size(); ++i) {
    DeviceModel& model = models_[plan_.lane_model[i]];
    model.ready->record(*model.queue);
    main.wait(*model.ready);
  }
  return most <= 1;
}

PromptReader::Place PromptReader::place(std::vector<DeviceLane>& lanes, size_t lane, int row) {
  DeviceModel& model = models_[plan_.lane_model[lane]];
  DeviceLane& own = lanes[lane];
  const int64_t end = own.prompt.piece_end(own.length, Decoder::kPrefillRows);
  return {model,
          own,
          {plan_.lane_model[lane], plan_.adapter_of(static_cast<int64_t>(lane)), own.piece},
          static_cast<int>(row * model.decoder->lanes() + plan_.index_of(static_cast<int64_t>(lane))),
          end,
          end == own.size()};
}

void PromptReader::read(const Place& place) {
  DeviceLane& lane = place.lane;
  Decoder& decoder = *place.model.decoder;
  if (!lane.tokens.defined()) {
    stage(place);
  }
  const auto begin = static_cast<int>(lane.length);
  const auto count = static_cast<int>(place.end - lane.length);
  decoder.prefill(lane.tokens.const_data_ptr<int32_t>() + begin, count, place.row, begin, place.last);
  const PrefixPiece* piece = nullptr;
  place.model.queue->run([&] {
    const PieceBytes bytes = {decoder.cache_bytes(count), place.last ? vocab_bytes(place.model) : 0};
    piece = prefixes_.insert(place.key, std::span(lane.prompt.tokens).subspan(begin, count), bytes,
                             on_device(place.model.queue->device()), evicted_.back().memory);
  });
  if (piece != nullptr) {
    decoder.save(place.row, begin, count, piece->cache());
    if (place.last) {
      place.model.queue->copy(piece->logits(), logits(place), vocab_bytes(place.model));
    }
  }
  lane.piece = piece == nullptr ? kNoPiece : piece->id;
  lane.length = place.end;
}

bool PromptReader::restore(const Place& place, int64_t& cached_tokens) {
  DeviceLane& lane = place.lane;
  const int64_t count = place.end - lane.length;
  const PrefixPiece* piece =
      prefixes_.find(place.key, std::span(lane.prompt.tokens).subspan(lane.length, count), place.last);
  if (piece == nullptr) {
    return false;
  }
  place.model.decoder->restore(place.row, static_cast<int>(lane.length), static_cast<int>(count), piece->cache());
  if (place.last) {
    place.model.queue->copy(logits(place), piece->logits(), vocab_bytes(place.model));
  }
  lane.piece = piece->id;
  lane.length = place.end;
  cached_tokens += count;
  return true;
}

// Sends a prompt to the device of its model.
void PromptReader::stage(const Place& place) {
  DeviceLane& lane = place.lane;
  Queue& queue = *place.model.queue;
  lane.staged = pinned({lane.size()}, at::kInt);
  std::copy(lane.prompt.tokens.begin(), lane.prompt.tokens.end(), lane.staged.mutable_data_ptr<int32_t>());
  queue.run([&] { lane.tokens = at::empty({lane.size()}, on_device(queue.device()).dtype(at::kInt)); });
  queue.copy(lane.tokens.mutable_data_ptr(), lane.staged.const_data_ptr(), static_cast<int64_t>(lane.staged.nbytes()));
}

// Brings a prompt's logits to the device that solves.
void PromptReader::publish(const Place& place) {
  DeviceModel& model = place.model;
  if (model.remote) {
    model.queue->copy(model.logits.mutable_data_ptr<float>() + place.row * model.decoder->vocab(), logits(place),
                      vocab_bytes(model));
  }
}

float* PromptReader::logits(const Place& place) {
  return place.model.decoder->logits() + place.row * place.model.decoder->vocab();
}

void PromptReader::release(int64_t steps_done) {
  while (!evicted_.empty() && evicted_.front().step < steps_done) {
    evicted_.pop_front();
  }
}

}  // namespace dlf::cuda
