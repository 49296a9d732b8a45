#pragma once

#include "ops/tiles.h"
#include "support/cpu_capability.h"
#include "support/thread_team.h"

namespace dlf::ops {

// Rounds the weights [out, in] (float32 or bfloat16) to int8 with a scale for each output channel (`group` 0), or to
// int4 with a scale for each group of 32 or 64 inputs, and lays them out in tiles. The scale of a group is the one of
// several tries that leaves the least squared error.
Tiles quantize(const at::Tensor& weight, MatrixType type, int64_t group, ThreadTeam& team);

struct QuantizeArgs {
  const float* weight;  // [in, kTileOutputs] of one tile, zero beyond out
  int64_t in;           // a multiple of the group
  int64_t group;
  void* data;
  void* scale;
};

DLF_CPU_KERNEL(quantize_int8_kernel, const QuantizeArgs& args);
DLF_CPU_KERNEL(quantize_int4_kernel, const QuantizeArgs& args);

}  // namespace dlf::ops
