#pragma once

#include "ops/cuda/adapted_lanes.h"
#include "ops/embedding.h"
#include "support/cuda/stream.h"

namespace dlf::cuda {

struct EmbeddingArgs : ops::EmbeddingArgs {
  const ops::OwnEmbedding* own = nullptr;  // device memory, of each lane; or null
  AdaptedLanes adapted = {};
};

void embedding(const EmbeddingArgs& args, Stream stream);

}  // namespace dlf::cuda
