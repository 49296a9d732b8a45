#include "engine/cache_size.h"

#include <algorithm>

#include "model/block_store.h"
#include "support/option_error.h"

namespace dlf {
namespace {

// Bytes of a block of every lane.
int64_t block_of_all(const FusionPlan& plan, std::span<const int64_t> block_bytes) {
  int64_t bytes = 0;
  for (const int64_t model : plan.lane_model) {
    bytes += block_bytes[model];
  }
  return std::max<int64_t>(bytes, 1);
}

// Bytes of a block of every lane on the device of a model; of a split one, on the device with most.
int64_t shared_block(const FusionPlan& plan, std::span<const int64_t> block_bytes, const EngineOptions& options,
                     size_t model) {
  int64_t most = 0;
  for (const int device : devices_of(plan, options, static_cast<int64_t>(model))) {
    int64_t bytes = 0;
    for (const int64_t other : plan.lane_model) {
      const std::vector<int> devices = devices_of(plan, options, other);
      const auto count = static_cast<int64_t>(devices.size());
      bytes += std::ranges::count(devices, device) * (block_bytes[other] + count - 1) / count;
    }
    most = std::max(most, bytes);
  }
  return std::max<int64_t>(most, 1);
}

}  // namespace

std::vector<int> devices_of(const FusionPlan& plan, const EngineOptions& options, int64_t model) {
  std::vector<int> devices = {options.devices.at(model)};
  if (model == plan.large_model()) {
    devices.insert(devices.end(), options.split.begin(), options.split.end());
  }
  return devices;
}

std::vector<int64_t> block_bytes(const Models& models) {
  std::vector<int64_t> bytes;
  for (const std::shared_ptr<const Weights>& model : models) {
    bytes.push_back(block_bytes(model->spec(), model->dtype()));
  }
  return bytes;
}

std::vector<CacheSize> cache_sizes(const FusionPlan& plan, std::span<const int64_t> block_bytes,
                                   const EngineOptions& options) {
  const bool on_cpu = options.devices.empty();
  const int64_t slots = options.max_batch + (on_cpu ? 1 : 0);
  const int64_t together = block_of_all(plan, block_bytes);
  const bool bounded = options.kv_cache_bytes > 0;
  const int64_t of_lane = bounded ? options.kv_cache_bytes / together : 0;
  check_option(!bounded || of_lane > 0, "kv_cache_bytes", " is ", options.kv_cache_bytes, "; ", ops::kCacheBlock,
               " tokens of every lane take ", together);
  std::vector<CacheSize> sizes;
  for (size_t model = 0; model < block_bytes.size(); ++model) {
    const int64_t lanes = plan.lanes_of(static_cast<int64_t>(model));
    // On a GPU the models share the bytes; the memory of the CPU is not touched before it is used.
    const int64_t shared = on_cpu ? lanes * block_bytes[model] : shared_block(plan, block_bytes, options, model);
    CacheSize size = {slots * lanes * ops::blocks_for(options.max_context),
                      options.prefix_cache_bytes / shared * lanes};
    if (bounded && of_lane * lanes < size.blocks()) {
      size = {of_lane * lanes, 0};
    }
    sizes.push_back(size);
  }
  return sizes;
}

}  // namespace dlf
