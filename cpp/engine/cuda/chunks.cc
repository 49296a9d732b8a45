#include "engine/cuda/chunks.h"

#include <ATen/ops/empty.h>

#include <algorithm>
#include <utility>

namespace dlf::cuda {
namespace {

int64_t vocab_bytes(const DeviceModel& model) { return model.vocab() * static_cast<int64_t>(sizeof(float)); }

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
  Decoder& decoder = *model(chunk.lane).decoder;
  decoder.prefill(send(chunk), size_of(chunk), static_cast<int>(chunk.cache_slot), static_cast<int>(chunk.begin),
                  chunk.last);
  if (chunk.last) {
    model(chunk.lane).gather(chunk.cache_slot, 1, /*active=*/false);
  }
  publish(chunk);
}

ChunkBytes ChunkReader::bytes(const Chunk& chunk) const {
  const DeviceModel& model = this->model(chunk.lane);
  return {model.decoder->cache_bytes(size_of(chunk)), chunk.last ? vocab_bytes(model) : 0};
}

void ChunkReader::save(const Chunk& chunk, const PrefixChunk& to) {
  DeviceModel& model = this->model(chunk.lane);
  model.decoder->save(static_cast<int>(chunk.cache_slot), static_cast<int>(chunk.begin), size_of(chunk), to.cache());
  if (chunk.last) {
    model.queue->copy(to.logits(), logits(chunk), vocab_bytes(model));
  }
}

void ChunkReader::restore(const Chunk& chunk, const PrefixChunk& from) {
  DeviceModel& model = this->model(chunk.lane);
  model.decoder->restore(static_cast<int>(chunk.cache_slot), static_cast<int>(chunk.begin), size_of(chunk),
                         from.cache());
  if (chunk.last) {
    model.queue->copy(logits(chunk), from.logits(), vocab_bytes(model));
  }
  publish(chunk);
}

at::Tensor ChunkReader::allocate(int64_t lane, int64_t bytes) {
  Queue& queue = *model(lane).queue;
  at::Tensor memory;
  queue.run([&] { memory = at::empty({bytes}, on_device(queue.device()).dtype(at::kByte)); });
  return memory;
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

// Copies the tokens to the device of their model.
const int32_t* ChunkReader::send(const Chunk& chunk) {
  Queue& queue = *model(chunk.lane).queue;
  const auto size = static_cast<int64_t>(chunk.tokens.size());
  at::Tensor here = pinned({size}, at::kInt);
  std::copy(chunk.tokens.begin(), chunk.tokens.end(), here.mutable_data_ptr<int32_t>());
  at::Tensor there;
  queue.run([&] { there = at::empty({size}, on_device(queue.device()).dtype(at::kInt)); });
  auto* tokens = there.mutable_data_ptr<int32_t>();
  queue.copy(tokens, here.const_data_ptr(), static_cast<int64_t>(here.nbytes()));
  release(std::move(here));
  release(std::move(there));
  return tokens;
}

// Copies a prompt's last logits to the device that solves.
void ChunkReader::publish(const Chunk& chunk) {
  DeviceModel& model = this->model(chunk.lane);
  if (chunk.last && model.remote) {
    model.queue->copy(model.logits.mutable_data_ptr<float>() + chunk.cache_slot * model.vocab(), logits(chunk),
                      vocab_bytes(model));
  }
}

}  // namespace dlf::cuda
