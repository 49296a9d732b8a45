#pragma once

#include "ops/rope.h"
#include "support/cuda/stream.h"

namespace dlf::cuda {

// The cache is [blocks, kv_heads, kCacheBlock, head_dim].
void rope_and_cache(const ops::RopeArgs& args, Stream stream);

}  // namespace dlf::cuda
