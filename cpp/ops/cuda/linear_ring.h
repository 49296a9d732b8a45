#pragma once

#include "ops/cuda/linear.h"

namespace dlf::cuda {

// Whether the current device has what linear_ring() needs: sm_90.
bool linear_has_ring();

// linear() with weights that stream through a ring in shared memory, so that a multiprocessor has as many bytes on
// their way as the memory can be busy with, also between two tiles and while the kernel before still runs.
// float16 or bfloat16 weights, `in` a multiple of 8. int8 and int4 are not faster by it: what holds them up is not the
// memory.
void linear_ring(const LinearArgs& args, Stream stream);

}  // namespace dlf::cuda
