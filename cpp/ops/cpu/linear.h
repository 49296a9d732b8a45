#pragma once

#include <span>

#include "ops/activation.h"
#include "ops/cpu/linear_input.h"
#include "ops/linear.h"
#include "support/cpu_capability.h"
#include "support/thread_team.h"

namespace dlf::ops {

// y is float32 [rows, out].
struct LinearArgs : LinearProduct {
  bool accumulate;  // y += x W^T + bias instead of y =
};

// Multiplies the few rows of a decode step; reading W once bounds the time.
void linear(const LinearInputRows& x, const LinearArgs& args, ThreadTeam& team);

// Makes several products of one x in one loop (query, key and value). Their weights read x alike (read_alike).
void linear(const LinearInputRows& x, std::span<const LinearArgs> products, ThreadTeam& team);

// gate.y = activation(x Wg^T) * (x Wu^T), of two products that have one shape and read x alike, in one loop.
void linear_gated(const LinearInputRows& x, const LinearArgs& gate, const LinearArgs& up, Activation activation,
                  const float* row_gate, ThreadTeam& team);

// Makes several products of the rows of a prompt: of float32 and bfloat16 weights with sums in another order, which is
// fast for many rows, and of tiles as linear() does, to the bit.
void linear_prefill(const LinearInputRows& x, std::span<const LinearArgs> products, ThreadTeam& team);

// Tiles [begin, end) of kTileOutputs output channels: of float32 and bfloat16 weights, and of weights in tiles.
DLF_CPU_KERNEL(linear_kernel, const LinearInputRows& x, const LinearArgs& args, int64_t begin, int64_t end);
DLF_CPU_KERNEL(linear_tiles_kernel, const LinearInputRows& x, const LinearArgs& args, int64_t begin, int64_t end);
DLF_CPU_KERNEL(linear_blocks_kernel, const LinearInputRows& x, const LinearArgs& args, int64_t begin, int64_t end);
DLF_CPU_KERNEL(linear_units_kernel, const LinearInputRows& x, const LinearArgs& args, int64_t begin, int64_t end);

// Multiplies tiles [begin, end), as linear() and linear_prefill() do, with the fastest kernel for the type of weights
// and the number of rows, which changes no bit.
void multiply_tiles(const LinearInputRows& x, const LinearArgs& args, int64_t begin, int64_t end);
void multiply_prompt_tiles(const LinearInputRows& x, const LinearArgs& args, int64_t begin, int64_t end);

}  // namespace dlf::ops
