#pragma once

#include <cstdint>

#include "support/dtype.h"

namespace dlf::ops {

// y = the embedding of each row's token.
struct EmbeddingArgs {
  const void* weight;    // [vocab, size], of dtype
  const int32_t* token;  // [rows / lanes]: row r has token[r / lanes], which is inside the vocabulary, or −1: zeros
  float* y;              // [rows, size]
  int rows;
  int lanes;
  int size;
  DType dtype;
};

}  // namespace dlf::ops
