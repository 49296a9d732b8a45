#include "engine/cuda/memory_plan.h"

#include <c10/util/Exception.h>

#include <algorithm>
#include <array>
#include <cstdio>
#include <string>

#include "engine/cuda/sequences.h"
#include "engine/cuda/step_loop.h"
#include "engine/request.h"
#include "ops/cuda/linear.h"
#include "support/cuda/runtime.h"

namespace dlf::cuda {
namespace {

std::string gibibytes(int64_t bytes) {
  std::array<char, 32> text = {};
  std::snprintf(text.data(), text.size(), "%.2f GiB", static_cast<double>(bytes) / (1 << 30));
  return text.data();
}

void check_present(const EngineOptions& options, size_t models) {
  const std::vector<DeviceInfo> present = devices();
  TORCH_CHECK(!present.empty(), "no CUDA device is there: use device='cpu', or see whether nvidia-smi finds one");
  TORCH_CHECK_VALUE(options.max_batch <= kMaxBatch, "max_batch is ", options.max_batch, "; on CUDA it can be at most ",
                    kMaxBatch);
  std::vector<int> named = options.split;
  for (size_t i = 0; i < models; ++i) {
    named.push_back(options.devices.at(i));
  }
  for (const int device : named) {
    TORCH_CHECK_VALUE(device >= 0 && device < static_cast<int>(present.size()), "there is no device cuda:", device,
                      "; this machine has ", present.size(), " from cuda:0 on");
  }
}

// Whether another engine has put these weights there, which this one will share. Shards are not shared.
bool present(const MemoryPart& part, const FusionPlan& plan, const EngineOptions& options, const Models& models) {
  return part.name == kWeightsPart && devices_of(plan, options, part.model).size() == 1 &&
         models.at(part.model)->device_copies().has(part.device);
}

ModelSize size_of(const Weights& weights) {
  return {weights.spec(), weights.dtype(), weights.quantized(), weights.bytes()};
}

}  // namespace

int most_tokens(const EngineOptions& options) {
  const auto max_batch = static_cast<int>(options.max_batch);
  return std::max(max_batch, std::min(static_cast<int>(kMaxDraftRows), kStepTokens * max_batch));
}

int exact_tokens(const FusionPlan& plan) {
  int64_t most_lanes = 1;
  for (const int64_t model : plan.lane_model) {
    most_lanes = std::max(most_lanes, plan.lanes_of(model));
  }
  return static_cast<int>(kLinearRows / most_lanes);
}

SamplerState::Size sampler_size(const FusionPlan& plan, const EngineOptions& options) {
  return {static_cast<int>(options.max_batch), most_tokens(options), plan.vocab, options.max_context + 1, kTopCapacity};
}

DecoderShape shape_of(const FusionPlan& plan, size_t model, const EngineOptions& options, const CacheSize& cache) {
  const int64_t lanes = plan.lanes_of(static_cast<int64_t>(model));
  return {static_cast<int>(options.max_batch), static_cast<int>(lanes), options.max_context, most_tokens(options),
          cache.blocks()};
}

EngineOptions checked(const FusionPlan& plan, const Models& models, const EngineOptions& options,
                      const Adapters& adapters) {
  std::vector<ModelSize> sizes;
  for (const std::shared_ptr<const Weights>& model : models) {
    sizes.push_back(size_of(*model));
  }
  for (size_t i = 0; i < adapters.size(); ++i) {
    for (const std::shared_ptr<const Adapter>& adapter : adapters[i]) {
      check_fits(*adapter, *models[i]);
      sizes[i].adapters += adapter->bytes();
      sizes[i].expert_rank = std::max(sizes[i].expert_rank, adapter->expert_rank());
    }
  }
  const std::vector<MemoryPart> parts = plan_memory(plan, sizes, options);
  for (const DeviceInfo& device : devices()) {
    int64_t needed = 0;
    for (const MemoryPart& part : parts) {
      needed += part.device == device.index && !present(part, plan, options, models) ? part.bytes : 0;
    }
    TORCH_CHECK(needed <= device.free_bytes, "the models with their caches take ", gibibytes(needed),
                " of cuda:", device.index, " (", device.name, "), which has ", gibibytes(device.free_bytes),
                " free of ", gibibytes(device.total_bytes),
                "; lower max_batch, max_context, prefix_cache_bytes or kv_cache_bytes, "
                "load smaller weights, or spread the models with "
                "device_map");
  }
  return options;
}

std::vector<MemoryPart> plan_memory(const FusionPlan& plan, const std::vector<ModelSize>& models,
                                    const EngineOptions& options) {
  check_present(options, models.size());
  std::vector<int64_t> of_block;
  of_block.reserve(models.size());
  for (const ModelSize& model : models) {
    of_block.push_back(block_bytes(model.spec, model.dtype));
  }
  const std::vector<CacheSize> caches = cache_sizes(plan, of_block, options);
  const int main = options.devices.at(plan.large_model());
  std::vector<MemoryPart> parts;
  const auto add = [&](int device, int model, const char* name, int64_t bytes) {
    if (bytes > 0) {
      parts.push_back({device, model, name, bytes});
    }
  };
  for (size_t i = 0; i < models.size(); ++i) {
    const int device = options.devices[i];
    const auto model = static_cast<int>(i);
    const DecoderShape shape = shape_of(plan, i, options, caches[i]);
    const std::vector<int> shards = devices_of(plan, options, model);
    for (size_t rank = 0; rank < shards.size(); ++rank) {
      const Shard shard = {static_cast<int64_t>(rank), static_cast<int64_t>(shards.size())};
      const DecoderBytes bytes = Decoder::bytes(models[i], shape, shard);
      add(shards[rank], model, kWeightsPart, bytes.weights);
      add(shards[rank], model, "adapters", models[i].adapters);  // at most
      const int64_t for_prefixes = bytes.kv_cache / shape.most_blocks() * caches[i].for_prefixes;
      add(shards[rank], model, "KV cache", bytes.kv_cache - for_prefixes);
      add(shards[rank], model, "prefix cache", for_prefixes);
      add(shards[rank], model, "activations", bytes.activations);
      add(shards[rank], model, "logits", bytes.logits);
      add(shards[rank], model, "workspace", bytes.workspace);
    }
    const bool mapped = plan.maps(model);
    // Of one token of the vocabulary.
    const int64_t column = shape.rows_with_logits() * static_cast<int64_t>(sizeof(float));
    const int64_t logits = column * models[i].spec.vocab_size;
    const int64_t gathered = column * plan.vocab;
    if (mapped) {
      constexpr auto kId = static_cast<int64_t>(sizeof(int32_t));
      add(device, model, "logits", gathered + plan.vocab * kId);
      add(main, model, "logits", plan.vocab * kId);  // which own id each token is fed as
    }
    if (device != main) {
      add(main, model, "logits", mapped ? gathered : logits);  // a copy where they are fused
    }
  }
  const int64_t fused_rows = (plan.experts.empty() ? 0 : most_tokens(options)) + (plan.lacks_base() ? 1 : 0);
  const int64_t fused = fused_rows * plan.vocab * static_cast<int64_t>(sizeof(float));
  add(main, -1, "fusion and sampling", fused + SamplerState::bytes(main, sampler_size(plan, options)));
  return parts;
}

}  // namespace dlf::cuda
