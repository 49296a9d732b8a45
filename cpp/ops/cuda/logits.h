#pragma once

#include "ops/logits.h"
#include "support/cuda/stream.h"

namespace dlf::cuda {

void finish_logits(const ops::LogitArgs& args, Stream stream);

}  // namespace dlf::cuda
