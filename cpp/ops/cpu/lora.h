#pragma once

#include <span>

#include "ops/cpu/linear_input.h"
#include "ops/lora.h"
#include "ops/matrix.h"
#include "support/cpu_capability.h"
#include "support/thread_team.h"

namespace dlf::ops {

// An update of neighbouring rows that have the same adapter.
struct LoraRun {
  LoraUpdate update;
  float* y;  // [rows, out]
  int row;   // first row of x
  int rows;
  float* inner;  // [rows, rank], for x A^T
};

// Adds all updates of one x, whose matrices are float32 or bfloat16, in two loops: down to the low rank, then back. A
// row's result does not depend on the other rows.
void lora(const LinearInputRows& x, std::span<const LoraRun> runs, MatrixType type, ThreadTeam& team);

// The same where x is one-hot: row r is that of token[r], or zero if that is −1, and A is [in, rank].
void lora(const int32_t* token, std::span<const LoraRun> runs, MatrixType type, ThreadTeam& team);

inline constexpr int64_t kLoraOutputs = 256;  // outputs per chunk

// Chunks [begin, end) of the outputs, from the low rank back.
DLF_CPU_KERNEL(lora_kernel, const LoraRun& run, MatrixType type, int64_t begin, int64_t end);

}  // namespace dlf::ops
