#pragma once

#include "ops/norm.h"
#include "support/cuda/stream.h"

namespace dlf::cuda {

void rms_norm(const ops::NormArgs& args, Stream stream);

}  // namespace dlf::cuda
