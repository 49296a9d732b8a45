#pragma once

#include <span>

#include "ops/cpu/linear_input.h"
#include "ops/matrix.h"
#include "support/cpu_capability.h"
#include "support/thread_team.h"

namespace dlf::ops {

// y += scale * (x A^T) B^T for neighbouring rows that have the same adapter.
struct LoraUpdate {
  Matrix a;       // [rank, in], of floats
  const void* b;  // [rank, out], of the same type
  float scale;
  float* y;  // [rows, out]
  int64_t out;
  int64_t row;  // of x, the first
  int64_t rows;
  float* inner;  // [rows, rank]: what x A^T is put into
};

// All updates of one x, in two loops: the projections to the low rank, then back. A row's result does not depend on the
// other rows.
void lora(const LinearInputRows& x, std::span<const LoraUpdate> updates, ThreadTeam& team);

inline constexpr int64_t kLoraOutputs = 256;  // of a chunk

// Chunks [begin, end) of the outputs: the way back.
DLF_CPU_KERNEL(lora_kernel, const LoraUpdate& update, int64_t begin, int64_t end);

}  // namespace dlf::ops
