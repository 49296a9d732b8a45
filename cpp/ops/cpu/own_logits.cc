#include "ops/cpu/own_logits.h"

#include <algorithm>
#include <array>

#include "ops/cpu/linear.h"

namespace dlf::ops {

void own_logits(const LinearInputRows& x, int rows, const OwnLogits& own, MatrixType type, float* y, int64_t vocab,
                ThreadTeam& team) {
  constexpr int kRows = 32;  // that share a reading of a tile from the cache
  const int64_t row_bytes = x.in * (type == MatrixType::float32 ? 4 : 2);
  team.parallel_for(tiles(own.count), 1, [&](int64_t begin, int64_t end) {
    std::array<float, kRows * kTileOutputs> logits;
    for (int64_t tile = begin; tile < end; ++tile) {
      const int64_t first = tile * kTileOutputs;
      const int64_t count = std::min(kTileOutputs, own.count - first);
      const Matrix weight = {static_cast<const char*>(own.rows) + first * row_bytes, nullptr, count, x.in, type, 0};
      for (int row = 0; row < rows; row += kRows) {
        const int some = std::min(kRows, rows - row);
        multiply_tiles(x.from(row), {{weight, nullptr, logits.data(), some}, /*accumulate=*/false}, 0, 1);
        for (int64_t r = 0; r < some; ++r) {
          float* to = y + (row + r) * vocab;
          for (int64_t i = 0; i < count; ++i) {
            to[own.token == nullptr ? first + i : own.token[first + i]] = logits[r * count + i];
          }
        }
      }
    }
  });
}

}  // namespace dlf::ops
