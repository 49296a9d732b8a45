#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <memory>
#include <span>
#include <vector>

#include "engine/drafting/pass_times.h"
#include "engine/plan.h"
#include "engine/sequence.h"
#include "model/cpu/decoder.h"
#include "support/team_size.h"

namespace dlf::cpu {

// A model on the CPU, the lanes that run on it, and their logits of this step.
class Model {
 public:
  // `rows`: most rows of logits in a step, of all lanes, and kCatchUpRows. Rows that no step needs stay untouched.
  // `blocks`: of the KV cache. `map` must outlive the model.
  Model(std::shared_ptr<const Weights> weights, int64_t slots, int64_t rows, int64_t max_context, int64_t blocks,
        ThreadTeam& team, std::vector<std::shared_ptr<const Adapter>> adapters, const TokenMap& map);

  Decoder& decoder() { return *decoder_; }
  const PassTimes& times() const { return times_; }
  int passes() const { return passes_; }             // of this step, without those that read prompts
  int64_t vocab() const { return logits_.size(1); }  // of a row of logits, by the large model's ids

  // Begins a step: frees all logits of the last one, and drops the tokens of the next pass.
  void clear();

  // Takes the next row of logits, for the next token of the lane in this cache slot.
  float* add_logits(int64_t cache_slot);
  // Logits of a lane in this step: after its last token, then after each drafted one.
  const std::vector<const float*>& logits(const Lane& lane) const { return lane_logits_[lane.cache_slot]; }

  // Tokens of the large model as the model's own ids, valid until the next call.
  std::span<const int64_t> own_ids(std::span<const int64_t> tokens);
  // Reads own ids of one lane, as Decoder::prefill, and writes logits by the large model's ids.
  void read(std::span<const int64_t> own_ids, int64_t cache_slot, int64_t position, float* logits, bool all_logits,
            int64_t adapter);

  // Adds the tokens that a lane has not read to the next pass.
  void add_rows(const Sequence& sequence, Lane& lane, int64_t adapter);
  // Runs one pass over the added tokens, if any, by as many threads as are fastest.
  void decode();

  // Reads tokens of the large model from `position` of a lane on, bit-identical to one step for each. Writes the last
  // one's logits, unless `logits` is null.
  void read_again(std::span<const int64_t> tokens, int64_t cache_slot, int64_t position, float* logits,
                  int64_t adapter);

  static constexpr int64_t kCatchUpRows = 16;
  // Reads a lane's unread tokens up to the last `keep`, bit-identical to one step for each, and drops their logits.
  void catch_up(const Sequence& sequence, Lane& lane, int64_t adapter, int64_t keep);

 private:
  std::unique_ptr<Decoder> decoder_;
  ThreadTeam* team_;
  const TokenMap* map_;
  at::Tensor logits_;                                   // [rows, vocab]
  int64_t used_ = 0;                                    // rows in use
  std::vector<std::vector<const float*>> lane_logits_;  // by cache slot
  at::Tensor own_logits_;                               // [rows, vocab of the model], before they are gathered
  std::vector<int64_t> own_ids_;                        // [max_context]
  std::vector<Row> rows_;                               // of the next pass
  std::vector<Row> late_rows_;                          // of a lane that catches up
  PassTimes times_;
  std::vector<TeamSize> team_sizes_;  // of passes over 1 row, up to 2, up to 4, ...
  int passes_ = 0;
};

// Logits of a sequence's lane in this step, after its last token and `position` drafted ones; null if the step does not
// read the lane.
inline const float* logits_of(const FusionPlan& plan, std::span<const Model> models, std::span<const Lane> lanes,
                              int64_t lane, int64_t position) {
  const std::vector<const float*>& rows = models[plan.lane_model[lane]].logits(lanes[lane]);
  return position < static_cast<int64_t>(rows.size()) ? rows[position] : nullptr;
}

}  // namespace dlf::cpu
