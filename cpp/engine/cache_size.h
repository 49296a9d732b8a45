#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "engine/options.h"
#include "engine/plan.h"

namespace dlf {

// Blocks of one model's KV cache.
struct CacheSize {
  int64_t for_requests;
  int64_t for_prefixes;  // more, so that the prefix cache has its bytes even if all slots are full

  int64_t blocks() const { return for_requests + for_prefixes; }
};

// CUDA devices of a model, the first one its home; several if it is split.
std::vector<int> devices_of(const FusionPlan& plan, const EngineOptions& options, int64_t model);

// Bytes of a block of each model's KV cache, on all its devices together.
std::vector<int64_t> block_bytes(const Models& models);

// Sizes of the KV caches of all models, whose blocks have these bytes. By default there is room for max_batch requests
// of max_context tokens and for the prefix cache; on the CPU, which touches memory when it is first used, for scoring
// too. kv_cache_bytes is shared out so that all lanes hold equally many tokens, and bounds all of this.
std::vector<CacheSize> cache_sizes(const FusionPlan& plan, std::span<const int64_t> block_bytes,
                                   const EngineOptions& options);

}  // namespace dlf
