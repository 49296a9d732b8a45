#pragma once

#include "ops/activation.h"
#include "support/cuda/stream.h"

namespace dlf::cuda {

void activate(const ops::ActivationArgs& args, Stream stream);

}  // namespace dlf::cuda
