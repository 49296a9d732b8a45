#pragma once

#include "ops/activation.h"
#include "support/cuda/stream.h"

namespace dlf::cuda {

void swiglu(const ops::SwiGluArgs& args, Stream stream);

}  // namespace dlf::cuda
