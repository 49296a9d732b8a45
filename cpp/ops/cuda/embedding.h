#pragma once

#include <cstdint>

#include "support/cuda/stream.h"
#include "support/dtype.h"

namespace dlf::cuda {

struct EmbeddingArgs {
  const void* weight;    // [vocab, size], of dtype
  const int32_t* token;  // [rows / lanes]: row r has token[r / lanes]; a token of -1 gives zeros
  float* hidden;         // [rows, size]
  int rows;
  int lanes;
  int size;
  DType dtype;
};

// hidden = the embedding of each row's token.
void embedding(const EmbeddingArgs& args, Stream stream);

}  // namespace dlf::cuda
