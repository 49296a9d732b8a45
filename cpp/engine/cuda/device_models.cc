#include "engine/cuda/device_models.h"

#include <ATen/ops/empty.h>
#include <ATen/ops/full.h>
#include <ATen/ops/zeros.h>

#include "engine/cuda/memory_plan.h"

namespace dlf::cuda {
namespace {

int32_t* integers(at::Tensor& tensor) { return tensor.mutable_data_ptr<int32_t>(); }

float* shared_logits(DeviceModel& model) {
  return model.remote ? model.logits.mutable_data_ptr<float>() : model.decoder->logits();
}

}  // namespace

DeviceModels::DeviceModels(const FusionPlan& plan, const Models& weights, const EngineOptions& options,
                           const Adapters& adapters)
    : plan_(plan), large_(static_cast<size_t>(plan.lane_model[0])) {
  const int device = options.devices.at(large_);
  const auto ints = on_device(device).dtype(at::kInt);
  const auto floats = on_device(device).dtype(at::kFloat);
  for (size_t i = 0; i < weights.size(); ++i) {
    const DecoderShape shape = shape_of(plan, i, options);
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
      model.decoder = std::make_unique<Decoder>(*weights[i], shape, *model.queue, own, lane_adapter);
    });
    model.queue->synchronize();
    model.ready = std::make_unique<Event>(model.queue->device());
    model.remote = model.queue->device() != device;
    model.tokens = model.remote ? at::zeros({shape.max_tokens}, ints) : model.decoder->tokens();
    model.positions = model.remote ? at::full({shape.rows()}, -1, ints) : model.decoder->positions();
    if (model.remote) {
      model.logits = at::empty({model.decoder->logits_rows(), model.decoder->vocab()}, floats);
    }
  }
  begun_ = std::make_unique<Event>(device);
}

void DeviceModels::synchronize() {
  for (DeviceModel& model : models_) {
    model.queue->synchronize();
  }
}

void DeviceModels::forward(int batch, const std::function<Pass(size_t)>& pass_of) {
  begun_->record(main());
  for (size_t i = 0; i < models_.size(); ++i) {
    DeviceModel& model = models_[i];
    const auto [first, count] = pass_of(i);
    if (i == large_ || count == 0) {
      continue;
    }
    model.queue->wait(*begun_);
    const int64_t tokens = int64_t{batch} * count;
    const int64_t rows = tokens * model.decoder->lanes();
    const int64_t first_row = int64_t{batch} * first * model.decoder->lanes();
    if (model.remote) {
      const int64_t first_token = int64_t{batch} * first;
      model.queue->copy(model.decoder->tokens().mutable_data_ptr<int32_t>() + first_token,
                        model.tokens.const_data_ptr<int32_t>() + first_token, tokens * 4);
      model.queue->copy(model.decoder->positions().mutable_data_ptr<int32_t>() + first_row,
                        model.positions.const_data_ptr<int32_t>() + first_row, rows * 4);
    }
    model.decoder->decode(batch, first, count);
    if (model.remote) {
      const int64_t vocab = model.decoder->vocab();
      model.queue->copy(model.logits.mutable_data_ptr<float>() + first_row * vocab,
                        model.decoder->logits() + first_row * vocab, rows * vocab * 4);
    }
    model.ready->record(*model.queue);
  }
  if (const auto [first, count] = pass_of(large_); count > 0) {
    models_[large_].decoder->decode(batch, first, count);
  }
  for (size_t i = 0; i < models_.size(); ++i) {
    if (i != large_ && pass_of(i).count > 0) {
      main().wait(*models_[i].ready);
    }
  }
}

Logits DeviceModels::logits(int64_t lane) {
  DeviceModel& model = models_[plan_.lane_model[lane]];
  const int64_t vocab = model.decoder->vocab();
  return {shared_logits(model) + plan_.index_of(lane) * vocab, model.decoder->lanes() * vocab};
}

void DeviceModels::keep_logits(int batch, const int32_t* active, const int32_t* accepted) {
  for (DeviceModel& model : models_) {
    const Decoder& decoder = *model.decoder;
    cuda::keep_logits({active, accepted, shared_logits(model), decoder.vocab(), decoder.lanes(), batch},
                      main().stream());
  }
}

std::vector<ModelRows> DeviceModels::rows() {
  std::vector<ModelRows> rows;
  rows.reserve(models_.size());
  for (DeviceModel& model : models_) {
    rows.push_back({integers(model.tokens), integers(model.positions), model.decoder->lanes()});
  }
  return rows;
}

}  // namespace dlf::cuda
