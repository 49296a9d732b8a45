#include "engine/device_room_cuda.h"

#include <c10/util/Exception.h>

#include <algorithm>
#include <array>
#include <cstdio>
#include <string>

#include "engine/sequences_cuda.h"
#include "engine/speculation.h"
#include "ops/linear_cuda.h"
#include "support/cuda/runtime.h"

namespace dlf::cuda {
namespace {

std::string gibibytes(int64_t bytes) {
  std::array<char, 32> text = {};
  std::snprintf(text.data(), text.size(), "%.2f GiB", static_cast<double>(bytes) / (1 << 30));
  return text.data();
}

// What else a step needs on the large model's device.
int64_t step_bytes(const FusionPlan& plan, int device, const CudaOptions& options) {
  const int64_t fused =
      plan.experts.empty() ? 0 : most_tokens(options) * plan.vocab * static_cast<int64_t>(sizeof(float));
  return fused + SamplerState::bytes(device, sampler_size(plan, options));
}

}  // namespace

int most_tokens(const CudaOptions& options) {
  const auto max_batch = static_cast<int>(options.max_batch);
  return std::max(max_batch, std::min(static_cast<int>(kDraftRows), kStepTokens * max_batch));
}

int exact_tokens(const FusionPlan& plan) {
  int64_t most_lanes = 1;
  for (const int64_t model : plan.lane_model) {
    most_lanes = std::max<int64_t>(most_lanes, std::count(plan.lane_model.begin(), plan.lane_model.end(), model));
  }
  return static_cast<int>(kLinearRows / most_lanes);
}

SamplerState::Size sampler_size(const FusionPlan& plan, const CudaOptions& options) {
  return {static_cast<int>(options.max_batch), most_tokens(options), plan.vocab, options.max_context + 1, kTopCapacity};
}

DecoderShape shape_of(const FusionPlan& plan, size_t model, const CudaOptions& options) {
  const auto lanes = std::count(plan.lane_model.begin(), plan.lane_model.end(), static_cast<int64_t>(model));
  return {static_cast<int>(options.max_batch), static_cast<int>(lanes), options.max_context, most_tokens(options)};
}

void check_devices(const FusionPlan& plan, const Models& models, const CudaOptions& options, const Adapters& adapters) {
  const std::vector<DeviceInfo> present = devices();
  TORCH_CHECK(!present.empty(), "no CUDA device is there: use device='cpu', or see whether nvidia-smi finds one");
  TORCH_CHECK_VALUE(options.max_batch <= kMaxCudaBatch, "max_batch is ", options.max_batch,
                    "; on CUDA it can be at most ", kMaxCudaBatch);
  std::vector<int64_t> needed(present.size());
  for (size_t i = 0; i < models.size(); ++i) {
    const int device = options.devices.at(i);
    TORCH_CHECK_VALUE(device >= 0 && device < static_cast<int>(present.size()), "there is no device cuda:", device,
                      "; this machine has ", present.size(), " from cuda:0 on");
    const bool first = needed[device] == 0;
    needed[device] += Decoder::bytes(*models[i], shape_of(plan, i, options)) + (first ? options.prefix_cache_bytes : 0);
  }
  for (size_t i = 0; i < adapters.size(); ++i) {
    for (const std::shared_ptr<const Adapter>& adapter : adapters[i]) {
      check_fits(*adapter, *models[i]);
      needed[options.devices[i]] += adapter->bytes();
    }
  }
  const int device = options.devices.at(plan.lane_model[0]);
  needed[device] += step_bytes(plan, device, options);
  for (const DeviceInfo& device : present) {
    TORCH_CHECK(needed[device.index] <= device.free_bytes, "the models with their caches take ",
                gibibytes(needed[device.index]), " of cuda:", device.index, " (", device.name, "), which has ",
                gibibytes(device.free_bytes), " free of ", gibibytes(device.total_bytes),
                "; lower max_batch, max_context or prefix_cache_bytes, load smaller weights, or spread the models with "
                "device_map");
  }
}

}  // namespace dlf::cuda
