#include "ops/cpu/lora.h"

#include <c10/util/BFloat16.h>

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

void add_back(std::span<const LoraRun> runs, MatrixType type, ThreadTeam& team) {
  const auto back = DLF_CPU_DISPATCH(lora_kernel);
  for_items(runs, team, chunks, [&](const LoraRun& run, int64_t begin, int64_t end) { back(run, type, begin, end); });
}

template <typename Element>
void copy_row(const LoraUpdate& update, int32_t token, float* inner) {
  std::copy_n(static_cast<const Element*>(update.a) + int64_t{token} * update.rank, update.rank, inner);
}

}  // namespace

void lora(const LinearInputRows& x, std::span<const LoraRun> runs, MatrixType type, ThreadTeam& team) {
  const auto project = DLF_CPU_DISPATCH_BF16(linear_kernel);
  for_items(
      runs, team, [](const LoraRun& run) { return tiles(run.update.rank); },
      [&](const LoraRun& run, int64_t begin, int64_t end) {
        LinearInputRows rows = x;
        rows.x += run.row * x.in;
        rows.bfloat16 += x.bfloat16 == nullptr ? 0 : run.row * x.stride;
        const Matrix a = {run.update.a, nullptr, run.update.rank, x.in, type, 0};
        project(rows, {{a, nullptr, run.inner, run.rows}, false}, begin, end);
      });
  add_back(runs, type, team);
}

void lora(const int32_t* token, std::span<const LoraRun> runs, MatrixType type, ThreadTeam& team) {
  for (const LoraRun& run : runs) {
    for (int row = 0; row < run.rows; ++row) {
      float* inner = run.inner + int64_t{row} * run.update.rank;
      if (const int32_t one = token[run.row + row]; one < 0) {
        std::fill_n(inner, run.update.rank, 0.0F);
      } else if (type == MatrixType::float32) {
        copy_row<float>(run.update, one, inner);
      } else {
        copy_row<c10::BFloat16>(run.update, one, inner);
      }
    }
  }
  add_back(runs, type, team);
}

}  // namespace dlf::ops
