#pragma once

#include <ATen/core/Tensor.h>

#include <memory>
#include <span>
#include <vector>

#include "engine/pass_times.h"
#include "engine/plan.h"
#include "engine/prefix_cache.h"
#include "engine/sequence.h"
#include "model/decoder.h"
#include "support/thread_team.h"

namespace dlf {

struct StepTimings;

// A model on the processor, the lanes that run on it, and their logits of this step.
struct CpuModel {
  std::unique_ptr<Decoder> decoder;
  at::Tensor logits;        // [(max_batch + kDraftRows) * lanes, vocab]
  int64_t logits_used = 0;  // rows, in this step
  std::vector<Row> rows;    // tokens to decode in one pass
  PassTimes times;

  int64_t vocab() const { return logits.size(1); }

  // The next row of the logits, for a lane's next token.
  float* add_logits(Lane& lane);

  // Adds the tokens of a lane that it has not read to the rows.
  void add_rows(const Sequence& sequence, Lane& lane, int64_t adapter);

  // One pass of these rows, if there are any, to the logits that were added for them.
  void decode();
};

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
