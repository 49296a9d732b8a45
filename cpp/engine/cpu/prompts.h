#pragma once

#include <memory>
#include <span>
#include <vector>

#include "engine/cpu/model.h"
#include "engine/plan.h"
#include "engine/prefix_cache.h"
#include "engine/sequence.h"
#include "support/thread_team.h"

namespace dlf {

struct StepTimings;

// Reads prompts into the caches of their models, between the steps of other sequences.
class PromptReader {
 public:
  PromptReader(const FusionPlan& plan, std::vector<CpuModel>& models, int64_t prefix_cache_bytes, ThreadTeam& team);

  // At most one piece of each lane's prompt, so that a long one holds up neither other sequences nor Ctrl-C for long;
  // pieces that the prefix cache has cost next to nothing. True when the last logits of all lanes are there. Adds the
  // tokens that the prefix cache had and the seconds it took.
  bool read(std::vector<Lane>& lanes, int64_t& cached_tokens, StepTimings& timings);

 private:
  struct Place {  // of a lane's next piece
    CpuModel& model;
    Lane& lane;
    PiecePlace key;
    std::span<const int64_t> tokens;
    int64_t end;
    bool last;
  };

  Place place(std::vector<Lane>& lanes, size_t lane) const;
  bool restore(const Place& place, int64_t& cached_tokens);
  void read(const Place& place);

  const FusionPlan& plan_;
  std::vector<CpuModel>& models_;
  ThreadTeam& team_;
  PrefixCache prefixes_;
};

}  // namespace dlf
