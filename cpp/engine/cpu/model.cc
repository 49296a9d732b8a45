#include "engine/cpu/model.h"

#include <ATen/ops/empty.h>

#include <algorithm>
#include <utility>

#include "engine/request.h"
#include "engine/timer.h"

namespace dlf::cpu {

Model::Model(std::shared_ptr<const Weights> weights, int64_t slots, int64_t rows, int64_t max_context, ThreadTeam& team,
             std::vector<std::shared_ptr<const Adapter>> adapters)
    : logits_(at::empty({rows, weights->spec().vocab_size}, at::kFloat)), lane_logits_(slots) {
  decoder_ = std::make_unique<Decoder>(std::move(weights), slots, max_context, team, std::move(adapters), rows);
  rows_.reserve(rows);
  late_rows_.reserve(kCatchUpRows);
  for (std::vector<const float*>& lane : lane_logits_) {
    lane.reserve(kMaxDraft + 2);
  }
}

void Model::clear() {
  used_ = 0;
  rows_.clear();
  for (std::vector<const float*>& lane : lane_logits_) {
    lane.clear();
  }
}

float* Model::add_logits(int64_t cache_slot) {
  // One row is always free: there is one for each lane of a running sequence, and one for each draft.
  float* row = logits_.mutable_data_ptr<float>() + used_++ * vocab();
  lane_logits_[cache_slot].push_back(row);
  return row;
}

void Model::add_rows(const Sequence& sequence, Lane& lane, int64_t adapter) {
  for (const int64_t token : sequence.unread(lane)) {
    rows_.push_back({token, lane.cache_slot, lane.length++, adapter});
    add_logits(lane.cache_slot);
  }
}

void Model::catch_up(const Sequence& sequence, Lane& lane, int64_t adapter, int64_t keep) {
  while (true) {
    const std::span<const int64_t> unread = sequence.unread(lane);
    const auto late = static_cast<int64_t>(unread.size()) - keep;
    if (late <= 0) {
      return;
    }
    for (const int64_t token : unread.first(std::min(late, kCatchUpRows))) {
      late_rows_.push_back({token, lane.cache_slot, lane.length++, adapter});
    }
    decoder_->decode(late_rows_, logits_.mutable_data_ptr<float>() + used_ * vocab());
    late_rows_.clear();
  }
}

void Model::decode() {
  if (rows_.empty()) {
    return;
  }
  const auto count = static_cast<int64_t>(rows_.size());
  double seconds = 0;
  {
    const Timer timer(seconds);
    decoder_->decode(rows_, logits_.mutable_data_ptr<float>() + (used_ - count) * vocab());
  }
  times_.add(count, seconds);
  rows_.clear();
}

}  // namespace dlf::cpu
