#pragma once

#include "ops/cuda/linear.h"

namespace dlf::cuda {

// linear() without tensor cores, and the obvious way: for float32 and for inputs that are not a multiple of 8.
void linear_plain(const LinearArgs& args, Stream stream);

}  // namespace dlf::cuda
