#include "engine/cpu/model.h"

#include "engine/timer.h"

namespace dlf {

float* CpuModel::add_logits(Lane& lane) {
  // There are as many rows as lanes of running sequences, and those of drafts: one is free.
  float* row = logits.mutable_data_ptr<float>() + logits_used++ * vocab();
  lane.logits.push_back(row);
  return row;
}

void CpuModel::add_rows(const Sequence& sequence, Lane& lane, int64_t adapter) {
  for (const int64_t token : sequence.unread(lane)) {
    rows.push_back({token, lane.slot, lane.length++, adapter});
    add_logits(lane);
  }
}

void CpuModel::decode() {
  if (rows.empty()) {
    return;
  }
  const auto count = static_cast<int64_t>(rows.size());
  double seconds = 0;
  {
    const Timer timer(seconds);
    decoder->decode(rows, logits.mutable_data_ptr<float>() + (logits_used - count) * vocab());
  }
  times.add(count, seconds);
  rows.clear();
}

}  // namespace dlf
