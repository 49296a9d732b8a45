#pragma once

#include "ops/router.h"
#include "support/cuda/stream.h"

namespace dlf::cuda {

// Routes the active rows; the kernel before must not write the positions.
void router(const ops::RouterArgs& args, Stream stream);

}  // namespace dlf::cuda
