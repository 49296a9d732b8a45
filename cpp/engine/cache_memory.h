#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "engine/block_pool.h"
#include "engine/options.h"
#include "engine/plan.h"
#include "engine/prefix_cache.h"
#include "engine/sequence.h"

namespace dlf {

class ChunkReader;

// The memory of all KV caches. Lanes and the prefix cache hold its blocks.
class CacheMemory {
 public:
  CacheMemory(const FusionPlan& plan, const EngineOptions& options, std::span<BlockStore* const> stores,
              ChunkReader& chunks);

  BlockPool& pool(int64_t model) { return pools_[model]; }
  PrefixCache& prefixes() { return prefixes_; }

  // Throws a ValueError for lanes that can never have room for all that they may come to.
  void check_fits(std::span<const Lane> lanes) const;

  // Gives the lanes room for positions(lane), and evicts chunks of prompts that nobody uses for that. Returns false if
  // there is too little, or if it does not leave room for a further block of each lane of `others`, as far as these
  // will come to need one; then nothing has changed for the lanes.
  template <typename Positions>
  bool reserve(std::span<const Lane> lanes, Positions&& positions, std::span<Sequence* const> others = {});
  // Makes the lanes ready to write behind their lengths, once there is room for it.
  void settle(std::span<const Lane> lanes);
  // Takes the blocks of lanes back: they have read nothing.
  void release(std::span<Lane> lanes);
  // Share of the cache's blocks that lanes hold, of the model where it is largest.
  double use() const;
  // Evicts the whole prefix cache.
  void forget();

 private:
  bool take(std::span<Sequence* const> others);

  const FusionPlan& plan_;
  std::vector<BlockPool> pools_;  // of each model
  PrefixCache prefixes_;
  std::vector<int64_t> lacking_;  // blocks of each model
};

template <typename Positions>
bool CacheMemory::reserve(std::span<const Lane> lanes, Positions&& positions, std::span<Sequence* const> others) {
  std::fill(lacking_.begin(), lacking_.end(), 0);
  for (size_t i = 0; i < lanes.size(); ++i) {
    if (lanes[i].used()) {
      const int64_t model = plan_.lane_model[i];
      lacking_[model] += pools_[model].lacking(lanes[i].cache_slot, positions(lanes[i]));
    }
  }
  if (!take(others)) {
    return false;
  }
  for (size_t i = 0; i < lanes.size(); ++i) {
    if (lanes[i].used()) {
      pools_[plan_.lane_model[i]].reserve(lanes[i].cache_slot, positions(lanes[i]));
    }
  }
  return true;
}

}  // namespace dlf
