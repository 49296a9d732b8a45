#pragma once

#include "support/cpu_capability.h"
#include "support/thread_team.h"

namespace dlf::ops {

struct SwiGluArgs {
  const float* gate;  // [count]
  const float* up;    // [count]
  float* y;           // [count]; may be gate
  int64_t count;
};

// SwiGLU: y = gate * sigmoid(gate) * up (Shazeer, arXiv 2002.05202).
void swiglu(const SwiGluArgs& args, ThreadTeam& team);

DLF_CPU_KERNEL(swiglu_kernel, const SwiGluArgs& args, int64_t begin, int64_t end);

}  // namespace dlf::ops
