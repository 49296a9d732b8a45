#include "ops/cpu/embedding.h"

#include <c10/util/BFloat16.h>

#include <algorithm>

#include "ops/cpu/tile_row.h"

namespace dlf::ops {
namespace {

template <typename Element>
void copy_rows(const CpuEmbeddingArgs& args) {
  const int64_t size = args.size();
  for (int64_t r = args.first; r < args.rows; ++r) {
    const int32_t token = args.token[r / args.lanes];
    float* y = args.y + r * size;
    if (token < 0) {
      std::fill_n(y, size, 0.0F);
      continue;
    }
    const int64_t own = args.own.row(token);
    if (own >= 0) {
      std::copy_n(static_cast<const Element*>(args.own.rows) + own * size, size, y);
    } else if (is_quantized(args.weight.type)) {
      read_tile_row(args.weight, token, y);
    } else {
      std::copy_n(static_cast<const Element*>(args.weight.data) + token * size, size, y);
    }
    for (int64_t i = 0; args.multiplier != 1.0F && i < size; ++i) {
      y[i] *= args.multiplier;
    }
    if (args.positions != nullptr) {
      const auto position = static_cast<int64_t>(args.places.position_of(static_cast<int>(r)));
      const Element* learned = static_cast<const Element*>(args.positions) + position * size;
      for (int64_t i = 0; i < size; ++i) {
        y[i] += static_cast<float>(learned[i]);
      }
    }
  }
}

}  // namespace

void embedding(const CpuEmbeddingArgs& args) {
  if (args.dtype == DType::float32) {
    copy_rows<float>(args);
  } else {
    copy_rows<c10::BFloat16>(args);
  }
}

}  // namespace dlf::ops
