#pragma once

#include "ops/embedding.h"
#include "support/cuda/stream.h"

namespace dlf::cuda {

void embedding(const ops::EmbeddingArgs& args, Stream stream);

}  // namespace dlf::cuda
