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

// Multiplies the many rows of a prompt: float32 and bfloat16 with torch's matrix library, tiles with the
// kernels for few rows, which are then bound by arithmetic and faster than the library.
void linear_prefill(const LinearInputRows& x, const LinearArgs& args, ThreadTeam& team);

// Whether linear_prefill() uses the library for so many rows.
bool linear_uses_library(const Matrix& weight, int64_t rows);

// Tiles [begin, end) of kTileOutputs output channels: of float32 and bfloat16 weights, and of weights in tiles.
DLF_CPU_KERNEL(linear_kernel, const LinearInputRows& x, const LinearArgs& args, int64_t begin, int64_t end);
DLF_CPU_KERNEL(linear_tiles_kernel, const LinearInputRows& x, const LinearArgs& args, int64_t begin, int64_t end);

using LinearKernel = void(const LinearInputRows& x, const LinearArgs& args, int64_t begin, int64_t end);

// The kernel for weights of a type.
LinearKernel* linear_kernel_of(MatrixType type);

}  // namespace dlf::ops
