#pragma once

#include "ops/embedding.h"

namespace dlf::ops {

struct CpuEmbeddingArgs : EmbeddingArgs {
  OwnEmbedding own = {};  // of the adapter of all these rows
  int first = 0;          // rows before it are left as they are
};

void embedding(const CpuEmbeddingArgs& args);

}  // namespace dlf::ops
