#include "ops/cpu/lora.h"

#include <algorithm>

#include "ops/cpu/linear.h"

namespace dlf::ops {
namespace {

int64_t chunks(const LoraRun& run) { return (run.update.out + kLoraOutputs - 1) / kLoraOutputs; }

// Calls body(run, begin, end) on ranges that cover size(run) items of every run.
template <typename Size, typename Body>
void for_items(std::span<const LoraRun> runs, ThreadTeam& team, Size&& size, Body&& body) {
  int64_t total = 0;
  for (const LoraRun& run : runs) {
    total += size(run);
  }
  team.parallel_for(total, 1, [&](int64_t begin, int64_t end) {
    int64_t first = 0;
    for (const LoraRun& run : runs) {
      const int64_t low = std::max(begin - first, int64_t{0});
      const int64_t high = std::min(end - first, size(run));
      if (low < high) {
        body(run, low, high);
      }
      first += size(run);
    }
  });
}

}  // namespace

void lora(const LinearInputRows& x, std::span<const LoraRun> runs, MatrixType type, ThreadTeam& team) {
  const auto project = DLF_CPU_DISPATCH_BF16(linear_kernel);
  for_items(
      runs, team, [](const LoraRun& run) { return tiles(run.update.rank); },
      [&](const LoraRun& run, int64_t begin, int64_t end) {
        LinearInputRows rows = x;
        rows.x += run.row * x.in;
        rows.bfloat16 += x.bfloat16 == nullptr ? 0 : run.row * x.in;
        const Matrix a = {run.update.a, nullptr, run.update.rank, x.in, type, 0};
        project(rows, {{a, nullptr, run.inner, run.rows}, false}, begin, end);
      });
  const auto back = DLF_CPU_DISPATCH(lora_kernel);
  for_items(runs, team, chunks, [&](const LoraRun& run, int64_t begin, int64_t end) { back(run, type, begin, end); });
}

}  // namespace dlf::ops
