#pragma once

#include "ops/cpu/linear.h"

// Local to the *_kernel.cc file and the instruction set that it is compiled for.
namespace dlf::ops::DLF_CPU {
namespace {

// Writes the products of one row and the channels of one tile.
inline void write_tile(const LinearArgs& args, int64_t row, int64_t tile, const float* values) {
  const int64_t out = args.weight.out;
  const int64_t first = tile * kTileOutputs;
  const int64_t count = out - first < kTileOutputs ? out - first : kTileOutputs;
  float* y = static_cast<float*>(args.y) + row * out + first;
  const auto write = [&](int64_t size) {
    for (int64_t i = 0; i < size; ++i) {
      const float value = values[i] + (args.bias ? args.bias[first + i] : 0.0F);
      y[i] = args.accumulate ? y[i] + value : value;
    }
  };
  count == kTileOutputs ? write(kTileOutputs) : write(count);  // a constant size needs no loop
}

}  // namespace
}  // namespace dlf::ops::DLF_CPU
