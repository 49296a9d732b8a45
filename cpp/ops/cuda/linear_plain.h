#pragma once

#include "ops/cuda/linear.h"

namespace dlf::cuda {

// linear() without tensor cores, in the obvious way: for float32, and where `in` is not a multiple of 8.
void linear_plain(const LinearArgs& args, Stream stream);

}  // namespace dlf::cuda
