#include "engine/cuda/chunks.h"

#include <ATen/ops/empty.h>

#include <algorithm>
#include <utility>

namespace dlf::cuda {
namespace {

int size_of(const Chunk& chunk) { return static_cast<int>(chunk.end - chunk.begin); }

}  // namespace

ChunkReader::ChunkReader(const FusionPlan& plan, DeviceModels& models, StepClock& clock)
    : plan_(plan), models_(models), clock_(clock), begun_(std::make_unique<Event>(models.main().device())) {}

void ChunkReader::begin() {
  clock_.disturb();
  begun_->record(models_.main());
  for (DeviceModel& model : models_.all()) {
    model.queue->wait(*begun_);  // queued steps use the same buffers
  }
}

void ChunkReader::end() {
  for (DeviceModel& model : models_.all()) {
    model.ready->record(*model.queue);
    models_.main().wait(*model.ready);
  }
}

void ChunkReader::read(const Chunk& chunk) {
  model(chunk.lane)
      .decoder->prefill(send(chunk), size_of(chunk), static_cast<int>(chunk.cache_slot), static_cast<int>(chunk.begin),
                        chunk.last);
  finish(chunk);
}

void ChunkReader::read_again(const Chunk& chunk) {
  model(chunk.lane)
      .decoder->read_again(send(chunk), size_of(chunk), static_cast<int>(chunk.cache_slot),
                           static_cast<int>(chunk.begin), chunk.last);
  finish(chunk);
}

at::Tensor ChunkReader::save_logits(const Chunk& chunk) {
  at::Tensor saved = pinned({logits_bytes(chunk.lane)}, at::kByte);
  model(chunk.lane).queue->copy(saved.mutable_data_ptr(), logits(chunk), logits_bytes(chunk.lane));
  return saved;
}

void ChunkReader::restore_logits(const Chunk& chunk, const at::Tensor& from) {
  model(chunk.lane).queue->copy(logits(chunk), from.const_data_ptr(), logits_bytes(chunk.lane));
  publish(chunk);
}

void ChunkReader::release(at::Tensor memory) { released_.push_back({clock_.launched(), std::move(memory)}); }

void ChunkReader::free(int64_t steps_done) {
  while (!released_.empty() && released_.front().step < steps_done) {
    released_.pop_front();
  }
}

// Logits of the sequence's last token, on the device of the model.
float* ChunkReader::logits(const Chunk& chunk) const {
  DeviceModel& model = this->model(chunk.lane);
  return model.own_logits() + chunk.cache_slot * model.vocab();
}

// Copies the tokens, as ids of their model, to its device.
const int32_t* ChunkReader::send(const Chunk& chunk) {
  Queue& queue = *model(chunk.lane).queue;
  const auto size = static_cast<int64_t>(chunk.tokens.size());
  at::Tensor here = pinned({size}, at::kInt);
  const TokenMap& map = plan_.map_of(plan_.lane_model[chunk.lane]);
  std::transform(chunk.tokens.begin(), chunk.tokens.end(), here.mutable_data_ptr<int32_t>(),
                 [&](int64_t token) { return static_cast<int32_t>(chunk.again ? map.own_id(token) : token); });
  at::Tensor there;
  queue.run([&] { there = at::empty({size}, on_device(queue.device()).dtype(at::kInt)); });
  auto* tokens = there.mutable_data_ptr<int32_t>();
  queue.copy(tokens, here.const_data_ptr(), static_cast<int64_t>(here.nbytes()));
  release(std::move(here));
  release(std::move(there));
  return tokens;
}

// Brings the last logits to where they are fused.
void ChunkReader::finish(const Chunk& chunk) {
  if (chunk.last) {
    model(chunk.lane).gather(chunk.cache_slot, 1, /*active=*/false);
  }
  publish(chunk);
}

// Copies a prompt's last logits to the device that solves.
void ChunkReader::publish(const Chunk& chunk) {
  DeviceModel& model = this->model(chunk.lane);
  if (chunk.last && model.remote) {
    model.queue->copy(model.logits.mutable_data_ptr<float>() + chunk.cache_slot * model.vocab(), logits(chunk),
                      logits_bytes(chunk.lane));
  }
}

}  // namespace dlf::cuda
