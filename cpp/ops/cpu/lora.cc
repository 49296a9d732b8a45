#include "ops/lora.h"

#include <algorithm>

#include "ops/linear.h"

namespace dlf::ops {
namespace {

int64_t chunks(const LoraUpdate& update) { return (update.out + kLoraOutputs - 1) / kLoraOutputs; }

// Calls body(update, begin, end) on ranges that cover size(update) items of every update.
template <typename Size, typename Body>
void for_items(std::span<const LoraUpdate> updates, ThreadTeam& team, Size&& size, Body&& body) {
  int64_t total = 0;
  for (const LoraUpdate& update : updates) {
    total += size(update);
  }
  team.parallel_for(total, 1, [&](int64_t begin, int64_t end) {
    int64_t first = 0;
    for (const LoraUpdate& update : updates) {
      const int64_t low = std::max(begin - first, int64_t{0});
      const int64_t high = std::min(end - first, size(update));
      if (low < high) {
        body(update, low, high);
      }
      first += size(update);
    }
  });
}

}  // namespace

void lora(const LinearInputRows& x, std::span<const LoraUpdate> updates, ThreadTeam& team) {
  const auto project = DLF_CPU_DISPATCH_BF16(linear_kernel);
  for_items(
      updates, team, [](const LoraUpdate& update) { return tiles(update.a.out); },
      [&](const LoraUpdate& update, int64_t begin, int64_t end) {
        LinearInputRows rows = x;
        rows.x += update.row * x.in;
        rows.bfloat16 += x.bfloat16 == nullptr ? 0 : update.row * x.in;
        project(rows, {update.a, nullptr, update.inner, update.rows, false}, begin, end);
      });
  const auto back = DLF_CPU_DISPATCH(lora_kernel);
  for_items(updates, team, chunks,
            [&](const LoraUpdate& update, int64_t begin, int64_t end) { back(update, begin, end); });
}

}  // namespace dlf::ops
