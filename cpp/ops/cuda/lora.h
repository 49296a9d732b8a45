#pragma once

#include <cstdint>

#include "ops/lora.h"
#include "support/cuda/stream.h"
#include "support/dtype.h"

namespace dlf::cuda {

inline constexpr int kMostUpdates = 3;  // products of one input: query, key and value

struct LoraArgs {
  const ops::LoraUpdate* updates;  // device memory, [lanes, kMostUpdates], of dtype
  int products;                    // number of products of x
  const void* x;                   // [rows, in], of dtype
  int in;
  int x_stride;
  void* y;  // [rows, y_stride], of dtype; the products' outputs begin at their offsets
  int y_stride;
  int offset[kMostUpdates];
  int lanes;                // row r belongs to lane r % lanes,
  int lane;                 // or, if this is not −1, all rows to this one
  const int32_t* position;  // [rows], −1: the row is idle; or null
  int rows;
  int max_rank;
  DType dtype;
};

// Adds the update to every row whose lane has an adapter.
void lora(const LoraArgs& args, Stream stream);

}  // namespace dlf::cuda
