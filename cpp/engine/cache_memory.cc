#include "engine/cache_memory.h"

#include <c10/util/Exception.h>

#include <utility>

#include "engine/prompt.h"

namespace dlf {

CacheMemory::CacheMemory(const FusionPlan& plan, const EngineOptions& options, std::span<BlockStore* const> stores,
                         ChunkReader& chunks)
    : plan_(plan),
      prefixes_(options.prefix_cache_bytes,
                [&](PrefixChunk chunk) {
                  pools_[chunk.key.model].drop(chunk.blocks);
                  chunks.release(std::move(chunk.logits));
                }),
      lacking_(stores.size()) {
  pools_.reserve(stores.size());
  for (size_t model = 0; model < stores.size(); ++model) {
    const int64_t slots = (options.max_batch + 1) * plan.lanes_of(static_cast<int64_t>(model));  // one is for scoring
    pools_.emplace_back(slots, ops::blocks_for(options.max_context), *stores[model]);
  }
}

void CacheMemory::check_fits(std::span<const Lane> lanes) const {
  std::vector<int64_t> blocks(pools_.size());
  for (size_t i = 0; i < lanes.size(); ++i) {
    blocks[plan_.lane_model[i]] += ops::blocks_for(lanes[i].most);
  }
  for (size_t model = 0; model < pools_.size(); ++model) {
    TORCH_CHECK_VALUE(blocks[model] <= pools_[model].size(), "the request may come to ",
                      blocks[model] * ops::kCacheBlock, " tokens in the KV cache of model ", model, " (in blocks of ",
                      ops::kCacheBlock, "), which holds ", pools_[model].size() * ops::kCacheBlock,
                      ": raise kv_cache_bytes, lower max_new_tokens or shorten the prompt");
  }
}

// Frees as many blocks as lack.
bool CacheMemory::take(std::span<Sequence* const> others) {
  for (size_t model = 0; model < pools_.size(); ++model) {
    BlockPool& pool = pools_[model];
    if (lacking_[model] == 0) {
      continue;
    }
    int64_t spared = 0;
    for (const Sequence* other : others) {
      for (size_t i = 0; i < other->lanes.size(); ++i) {
        const Lane& lane = other->lanes[i];
        if (plan_.lane_model[i] == static_cast<int64_t>(model) && lane.used()) {
          spared += pool.lacking(lane.cache_slot, lane.most) > 0 ? 1 : 0;
        }
      }
    }
    if (lacking_[model] + spared > pool.free() + pool.idle()) {
      return false;
    }
  }
  for (size_t model = 0; model < pools_.size(); ++model) {
    while (pools_[model].free() < lacking_[model]) {
      const auto is_idle = [&](const PrefixChunk& chunk) {
        return chunk.key.model == static_cast<int64_t>(model) && !pools_[model].used(chunk.blocks);
      };
      if (!prefixes_.evict(is_idle)) {
        return false;
      }
    }
  }
  return true;
}

void CacheMemory::settle(std::span<const Lane> lanes) {
  for (size_t i = 0; i < lanes.size(); ++i) {
    if (lanes[i].used()) {
      pools_[plan_.lane_model[i]].settle(lanes[i].cache_slot);
    }
  }
}

void CacheMemory::release(std::span<Lane> lanes) {
  for (size_t i = 0; i < lanes.size(); ++i) {
    if (lanes[i].used()) {
      pools_[plan_.lane_model[i]].release(lanes[i].cache_slot);
      lanes[i].length = 0;
      lanes[i].chunk = 0;
    }
  }
}

double CacheMemory::use() const {
  double most = 0;
  for (const BlockPool& pool : pools_) {
    const int64_t held = pool.size() - pool.free() - pool.idle();
    most = std::max(most, static_cast<double>(held) / static_cast<double>(std::max<int64_t>(pool.size(), 1)));
  }
  return most;
}

void CacheMemory::forget() {
  while (prefixes_.evict([](const PrefixChunk&) { return true; })) {
  }
}

}  // namespace dlf
