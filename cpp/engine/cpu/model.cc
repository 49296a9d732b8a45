#include "engine/cpu/model.h"

#include <ATen/ops/empty.h>

#include <algorithm>
#include <bit>
#include <utility>

#include "engine/cpu/gather_logits.h"
#include "engine/request.h"
#include "engine/timer.h"

namespace dlf::cpu {

Model::Model(std::shared_ptr<const Weights> weights, int64_t slots, int64_t rows, int64_t max_context, int64_t blocks,
             ThreadTeam& team, std::vector<std::shared_ptr<const Adapter>> adapters, const TokenMap& map)
    : team_(&team), map_(&map), lane_logits_(slots) {
  const int64_t own = weights->spec().vocab_size;
  logits_ = at::empty({rows, map.empty() ? own : static_cast<int64_t>(map.read.size())}, at::kFloat);
  if (!map.empty()) {
    own_logits_ = at::empty({rows, own}, at::kFloat);
    own_ids_.reserve(max_context);
  }
  decoder_ = std::make_unique<Decoder>(std::move(weights), slots, max_context, team, std::move(adapters), rows, blocks);
  rows_.reserve(rows);
  team_sizes_.assign(std::bit_width(static_cast<uint64_t>(rows)) + 1, TeamSize(team.size()));
  late_rows_.reserve(kCatchUpRows);
  for (std::vector<const float*>& lane : lane_logits_) {
    lane.reserve(kMaxDraft + 2);
  }
}

void Model::clear() {
  used_ = 0;
  passes_ = 0;
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
    rows_.push_back({map_->own_id(token), lane.cache_slot, lane.length++, adapter});
    add_logits(lane.cache_slot);
  }
}

void Model::catch_up(const Sequence& sequence, Lane& lane, int64_t adapter, int64_t keep) {
  const std::span<const int64_t> unread = sequence.unread(lane);
  const auto late = static_cast<int64_t>(unread.size()) - keep;
  if (late > 0) {
    read_again(unread.first(late), lane.cache_slot, lane.length, nullptr, adapter);
    lane.length += late;
  }
}

void Model::read_again(std::span<const int64_t> tokens, int64_t cache_slot, int64_t position, float* logits,
                       int64_t adapter) {
  at::Tensor& written = map_->empty() ? logits_ : own_logits_;
  auto* rows = written.mutable_data_ptr<float>() + (map_->empty() ? used_ : 0) * written.size(1);
  while (!tokens.empty()) {
    const size_t count = std::min(tokens.size(), static_cast<size_t>(kCatchUpRows));
    for (const int64_t token : tokens.first(count)) {
      late_rows_.push_back({map_->own_id(token), cache_slot, position++, adapter});
    }
    decoder_->decode(late_rows_, rows);
    ++passes_;
    late_rows_.clear();
    tokens = tokens.subspan(count);
    if (tokens.empty() && logits != nullptr) {
      const float* last = rows + (count - 1) * written.size(1);
      if (map_->empty()) {
        std::copy_n(last, vocab(), logits);
      } else {
        gather_logits(*map_, last, written.size(1), logits, 1, *team_);
      }
    }
  }
}

std::span<const int64_t> Model::own_ids(std::span<const int64_t> tokens) {
  if (map_->empty()) {
    return tokens;
  }
  own_ids_.clear();
  for (const int64_t token : tokens) {
    own_ids_.push_back(map_->own_id(token));
  }
  return own_ids_;
}

void Model::read(std::span<const int64_t> own_ids, int64_t cache_slot, int64_t position, float* logits, bool all_logits,
                 int64_t adapter) {
  if (map_->empty() || logits == nullptr) {
    return decoder_->prefill(own_ids, cache_slot, position, logits, all_logits, adapter);
  }
  const int64_t rows = all_logits ? static_cast<int64_t>(own_ids.size()) : 1;
  if (rows > own_logits_.size(0)) {  // only while a continuation is scored
    own_logits_ = at::empty({rows, own_logits_.size(1)}, at::kFloat);
  }
  auto* own = own_logits_.mutable_data_ptr<float>();
  decoder_->prefill(own_ids, cache_slot, position, own, all_logits, adapter);
  gather_logits(*map_, own, own_logits_.size(1), logits, rows, *team_);
}

void Model::decode() {
  if (rows_.empty()) {
    return;
  }
  const auto count = static_cast<int64_t>(rows_.size());
  TeamSize& size = team_sizes_[std::bit_width(static_cast<uint64_t>(count - 1))];
  double seconds = 0;
  {
    const ThreadTeam::Limit threads(*team_, size.next());
    const Timer timer(seconds);
    float* logits = logits_.mutable_data_ptr<float>() + (used_ - count) * vocab();
    if (map_->empty()) {
      decoder_->decode(rows_, logits);
    } else {
      auto* own = own_logits_.mutable_data_ptr<float>();
      decoder_->decode(rows_, own);
      gather_logits(*map_, own, own_logits_.size(1), logits, count, *team_);
    }
  }
  times_.add(count, seconds);
  size.add(seconds);
  rows_.clear();
  ++passes_;
}

}  // namespace dlf::cpu
