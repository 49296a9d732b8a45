#pragma once

#include <cstdint>

#include "ops/cuda/adapted_lanes.h"
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
  const int32_t* token;  // not null: x is one-hot, row r that of token[r / token_lanes], and A is [in, rank]
  int token_lanes;
  void* y;  // [rows, y_stride], of dtype or float32; the products' outputs begin at their offsets
  int y_stride;
  bool y_float;
  int offset[kMostUpdates];
  AdaptedLanes adapted;
  const int32_t* position;  // [rows], −1: the row is idle; or null
  int rows;
  int max_rank;
  float multiplier;  // of all updates
  DType dtype;
};

// Adds the update to every row whose lane has an adapter.
void lora(const LoraArgs& args, Stream stream);

}  // namespace dlf::cuda
