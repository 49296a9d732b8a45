#pragma once

#include <span>

#include "ops/cpu/linear_input.h"
#include "ops/cpu/lora.h"
#include "ops/experts.h"
#include "support/thread_team.h"

namespace dlf::ops {

struct CpuExpertsArgs : ExpertsArgs {
  float* up;                                   // [pairs, inner]: scratch
  LinearInput* input;                          // for all pairs
  bool is_prompt;                              // many rows: their sums run in another order
  bool accumulate;                             // y += instead of y =
  std::span<const LoraRun> gate_updates = {};  // of gated and up: rows are pairs
  std::span<const LoraRun> down_updates = {};  // of products
  MatrixType update_type = MatrixType::float32;
};

// Reads the weights of the chosen experts alone, each of them once for all rows that share it. Runs are whole: they
// hold all pairs of an expert.
void experts(const CpuExpertsArgs& args, ThreadTeam& team);

}  // namespace dlf::ops
