#pragma once

#include <span>

#include "ops/cpu/linear_input.h"
#include "ops/linear.h"
#include "support/cpu_capability.h"
#include "support/thread_team.h"

namespace dlf::ops {

// y is float32 [rows, out].
struct LinearArgs : LinearProduct {
  bool accumulate;  // y += x W^T + bias instead of y =
};

// For the few rows of a decode step: bound by reading W once.
void linear(const LinearInputRows& x, const LinearArgs& args, ThreadTeam& team);

// Several products of one x, whose weights have one type, in one loop: query, key and value.
void linear(const LinearInputRows& x, std::span<const LinearArgs> products, ThreadTeam& team);

// gate.y = silu(x Wg^T) * (x Wu^T), the SwiGLU of two products that have one shape, in one loop.
void linear_swiglu(const LinearInputRows& x, const LinearArgs& gate, const LinearArgs& up, ThreadTeam& team);

// The same product for the many rows of a prompt: float32 and bfloat16 by the matrix library that torch carries,
// int8 and int4 by the kernels of the few rows, which are bound by arithmetic then and faster than it.
void linear_prefill(const LinearInputRows& x, const LinearArgs& args, ThreadTeam& team);

// kTileOutputs output channels for each of [begin, end): of float32 and bfloat16 weights, and of int8 and int4 ones.
DLF_CPU_KERNEL(linear_kernel, const LinearInputRows& x, const LinearArgs& args, int64_t begin, int64_t end);
DLF_CPU_KERNEL(linear_tiles_kernel, const LinearInputRows& x, const LinearArgs& args, int64_t begin, int64_t end);

}  // namespace dlf::ops
