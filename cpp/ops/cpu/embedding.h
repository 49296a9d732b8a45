#pragma once

#include "ops/embedding.h"

namespace dlf::ops {

void embedding(const EmbeddingArgs& args);

}  // namespace dlf::ops
