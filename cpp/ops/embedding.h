#pragma once

#include "ops/cpu/row.h"
#include "support/dtype.h"

namespace dlf::ops {

struct EmbeddingArgs {
  const void* weight;  // [vocab, size], of dtype
  const Row* row;      // [rows]; token ids must be inside the vocabulary
  float* y;            // [rows, size]
  int64_t rows;
  int64_t size;
  DType dtype;
};

// y = the embedding of each row's token.
void embedding(const EmbeddingArgs& args);

}  // namespace dlf::ops
