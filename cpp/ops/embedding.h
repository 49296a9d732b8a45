#pragma once

#include <cstdint>

#include "ops/places.h"
#include "support/dtype.h"

namespace dlf::ops {

// y = multiplier * the embedding of each row's token, and, with a table of positions, that of its position.
struct EmbeddingArgs {
  const void* weight;    // [vocab, size], of dtype
  const int32_t* token;  // [rows / lanes]: row r has token[r / lanes], which is inside the vocabulary, or −1: zeros
  float* y;              // [rows, size]
  int rows;
  int lanes;
  int size;
  DType dtype;
  float multiplier = 1.0F;
  const void* positions = nullptr;  // [positions, size], of dtype, or null
  Places places = {};               // needed with `positions`
};

}  // namespace dlf::ops
