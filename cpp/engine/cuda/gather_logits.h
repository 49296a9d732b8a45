#pragma once

#include <cstdint>

#include "support/cuda/stream.h"

namespace dlf::cuda {

// Brings a model's logits into the order of the large model's ids, by TokenMap::read.
struct GatherLogitsArgs {
  const int32_t* read;       // [vocab]
  const int32_t* positions;  // [rows]; −1: the row is idle and stays as it is; null: no row is idle
  const float* from;         // [rows, model_vocab]
  float* to;                 // [rows, vocab]
  int64_t model_vocab;
  int64_t vocab;
  int rows;
};
void gather_logits(const GatherLogitsArgs& args, Stream stream);

}  // namespace dlf::cuda
