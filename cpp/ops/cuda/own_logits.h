#pragma once

#include "ops/cuda/adapted_lanes.h"
#include "ops/own_logits.h"
#include "support/cuda/stream.h"
#include "support/dtype.h"

namespace dlf::cuda {

struct OwnLogitsArgs {
  const ops::OwnLogits* own;  // device memory, of each lane; rows of dtype
  int most;                   // rows of any lane
  const void* x;              // [rows, in], of dtype
  int in;
  float* y;  // [rows, vocab]
  int vocab;
  AdaptedLanes adapted;
  const int32_t* position;  // [rows], −1: the row is idle; or null
  int rows;
  DType dtype;
};

// Writes the logits of every row whose lane has rows of its own.
void own_logits(const OwnLogitsArgs& args, Stream stream);

}  // namespace dlf::cuda
