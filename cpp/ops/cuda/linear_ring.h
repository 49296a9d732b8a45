#pragma once

#include "ops/cuda/linear.h"

namespace dlf::cuda {

// Whether the current device has what linear_ring() needs: sm_90.
bool linear_has_ring();

// linear() with weights that stream through a ring in shared memory, so that a multiprocessor has enough bytes in
// flight to keep the memory busy, also between two tiles and while the kernel before still runs. Takes float16 or
// bfloat16 weights, `in` a multiple of 8. int8 and int4 gain nothing: the memory does not bound them.
void linear_ring(const LinearArgs& args, Stream stream);

}  // namespace dlf::cuda
