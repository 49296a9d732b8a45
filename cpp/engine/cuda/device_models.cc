#include "engine/cuda/device_models.h"

#include <ATen/ops/empty.h>
#include <ATen/ops/full.h>
#include <ATen/ops/zeros.h>

#include <algorithm>
#include <span>

#include "engine/cuda/gather_logits.h"
#include "engine/cuda/memory_plan.h"
#include "ops/cuda/linear.h"

namespace dlf::cuda {
namespace {

int32_t* integers(at::Tensor& tensor) { return tensor.mutable_data_ptr<int32_t>(); }

float* shared_logits(DeviceModel& model) {
  return model.remote ? model.logits.mutable_data_ptr<float>() : model.own_logits();
}

// Copies ids to a device.
at::Tensor sent(std::span<const int32_t> ids, int device) {
  const at::Tensor here = at::empty({static_cast<int64_t>(ids.size())}, at::kInt);
  std::copy(ids.begin(), ids.end(), here.mutable_data_ptr<int32_t>());
  return here.to(on_device(device).device());
}

}  // namespace

void DeviceModel::gather(int64_t first_row, int64_t rows, bool active) {
  if (mapped()) {
    gather(decoder->logits() + first_row * decoder->vocab(), own_logits() + first_row * vocab(),
           active ? decoder->positions().const_data_ptr<int32_t>() + first_row : nullptr, rows);
  }
}

void DeviceModel::gather(const float* from, float* to, const int32_t* positions, int64_t rows) {
  const DeviceGuard guard(queue->device());
  gather_logits(
      {read.const_data_ptr<int32_t>(), positions, from, to, decoder->vocab(), vocab(), static_cast<int>(rows)},
      queue->stream());
}

DeviceModels::DeviceModels(const FusionPlan& plan, const Models& weights, const EngineOptions& options,
                           const Adapters& adapters)
    : plan_(plan), large_(static_cast<size_t>(plan.lane_model[0])) {
  const int device = options.devices.at(large_);
  const auto ints = on_device(device).dtype(at::kInt);
  const auto floats = on_device(device).dtype(at::kFloat);
  const std::vector<CacheSize> caches = cache_sizes(plan, block_bytes(weights), options);
  for (size_t i = 0; i < weights.size(); ++i) {
    const DecoderShape shape = shape_of(plan, i, options, caches[i]);
    DeviceModel& model = models_.emplace_back();
    model.queue = std::make_unique<Queue>(options.devices.at(i));
    std::vector<int64_t> lane_adapter;
    for (size_t lane = 0; lane < plan.lane_model.size(); ++lane) {
      if (plan.lane_model[lane] == static_cast<int64_t>(i)) {
        lane_adapter.push_back(plan.adapter_of(static_cast<int64_t>(lane)));
      }
    }
    model.queue->run([&] {
      const auto own = adapters.empty() ? Adapters::value_type() : adapters[i];
      model.decoder = std::make_unique<Decoder>(*weights[i], shape, *model.queue,
                                                i == large_ ? options.split : std::vector<int>(), own, lane_adapter);
    });
    const TokenMap& map = plan.map_of(static_cast<int64_t>(i));
    if (!map.empty()) {
      model.feed = sent(map.feed, device);
      model.queue->run([&] {
        const int own = model.queue->device();
        model.read = sent(map.read, own);
        model.gathered = at::zeros({model.decoder->logits_rows(), plan.vocab}, on_device(own).dtype(at::kFloat));
      });
    }
    model.queue->synchronize();
    model.ready = std::make_unique<Event>(model.queue->device());
    model.remote = model.queue->device() != device;
    model.tokens = model.remote ? at::zeros({shape.max_tokens}, ints) : model.decoder->tokens();
    model.positions = model.remote ? at::full({shape.rows()}, -1, ints) : model.decoder->positions();
    if (model.remote) {
      model.logits = at::empty({model.decoder->logits_rows(), model.vocab()}, floats);
    }
  }
  if (plan.lacks_base()) {
    main().run([&] { zeros_ = at::zeros({plan.vocab}, floats); });
  }
  begun_ = std::make_unique<Event>(device);
}

void DeviceModels::synchronize() {
  for (DeviceModel& model : models_) {
    model.queue->synchronize();
  }
}

int DeviceModels::small_tokens(int batch) const {
  int lanes = 0;
  for (size_t i = 0; i < models_.size(); ++i) {
    lanes = is_small(i) ? std::max(lanes, models_[i].decoder->lanes()) : lanes;
  }
  return lanes == 0 ? 0 : kLinearRows / (batch * lanes);
}

void DeviceModels::forward(int batch, const std::function<Pass(size_t)>& pass_of) {
  begun_->record(main());
  for (size_t i = 0; i < models_.size(); ++i) {
    DeviceModel& model = models_[i];
    const auto [first, count, first_logits] = pass_of(i);
    if (i == large_ || count == 0) {
      continue;
    }
    model.queue->wait(*begun_);
    const int64_t tokens = int64_t{batch} * count;
    const int64_t rows = tokens * model.decoder->lanes();
    const int64_t logits_rows = first_logits ? int64_t{batch} * model.decoder->lanes() : rows;
    const int64_t first_row = int64_t{batch} * first * model.decoder->lanes();
    if (model.remote) {
      const int64_t first_token = int64_t{batch} * first;
      model.queue->copy(model.decoder->tokens().mutable_data_ptr<int32_t>() + first_token,
                        model.tokens.const_data_ptr<int32_t>() + first_token, tokens * 4);
      model.queue->copy(model.decoder->positions().mutable_data_ptr<int32_t>() + first_row,
                        model.positions.const_data_ptr<int32_t>() + first_row, rows * 4);
    }
    model.decoder->decode(batch, first, count, first_logits);
    model.gather(first_row, logits_rows, /*active=*/true);
    if (model.remote) {
      const int64_t vocab = model.vocab();
      model.queue->copy(model.logits.mutable_data_ptr<float>() + first_row * vocab,
                        model.own_logits() + first_row * vocab, logits_rows * vocab * 4);
    }
    model.ready->record(*model.queue);
  }
  if (const auto [first, count, first_logits] = pass_of(large_); count > 0) {
    models_[large_].decoder->decode(batch, first, count, first_logits);
  }
  for (size_t i = 0; i < models_.size(); ++i) {
    if (i != large_ && pass_of(i).count > 0) {
      main().wait(*models_[i].ready);
    }
  }
}

void DeviceModels::change_blocks() {
  for (DeviceModel& model : models_) {
    if (model.decoder->blocks_changed()) {
      begun_->record(main());
      model.queue->wait(*begun_);  // queued steps use the same blocks
      model.decoder->change_blocks();
      model.ready->record(*model.queue);
      main().wait(*model.ready);
    }
  }
}

Logits DeviceModels::logits(int64_t lane) {
  if (lane == kNoLane) {
    return {zeros_.const_data_ptr<float>(), 0};
  }
  DeviceModel& model = models_[plan_.lane_model[lane]];
  const int64_t vocab = model.vocab();
  return {shared_logits(model) + plan_.index_of(lane) * vocab, model.decoder->lanes() * vocab};
}

void DeviceModels::keep_logits(int batch, const int32_t* active, const int32_t* accepted) {
  for (DeviceModel& model : models_) {
    const Decoder& decoder = *model.decoder;
    cuda::keep_logits({active, accepted, shared_logits(model), model.vocab(), decoder.lanes(), batch}, main().stream());
  }
}

std::vector<ModelRows> DeviceModels::rows() {
  std::vector<ModelRows> rows;
  rows.reserve(models_.size());
  for (DeviceModel& model : models_) {
    const auto* feed = model.mapped() ? model.feed.const_data_ptr<int32_t>() : nullptr;
    const bool small = is_small(static_cast<size_t>(&model - models_.data()));
    rows.push_back({integers(model.tokens), integers(model.positions), feed, model.decoder->lanes(), small});
  }
  return rows;
}

}  // namespace dlf::cuda
