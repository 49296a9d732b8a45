#pragma once

#include "ops/cuda/adapted_lanes.h"
#include "ops/experts.h"
#include "ops/lora.h"
#include "support/cuda/stream.h"

namespace dlf::cuda {

// What adapters add to the products of experts.
struct ExpertUpdates {
  const ops::LoraUpdate* updates;  // device memory, [lanes, experts, kExpertUpdates], of dtype; null: none
  int experts;
  AdaptedLanes adapted;
  float* inner;  // [pairs, 2, max_rank]: scratch for x A^T
  int max_rank;
};

inline constexpr int kExpertUpdates = 3;  // of gate, up and down

// The experts are in device memory; `like` is one of them on the host, for the sizes and types of all.
struct ExpertsArgs : ops::ExpertsArgs {
  ops::Expert like;
  const int32_t* position;  // [rows], −1: the row is neither read nor written; or null
  int most_runs;            // that the router can make of so many rows
  ExpertUpdates adapters = {};
};

inline constexpr int kExpertStepRows = 64;  // most rows that run as those of a step

// Most pairs of a run: rows that share one reading of an expert's weights. It may depend on the number of rows, since
// each row's sums are the same in any run.
int expert_run_pairs(int rows);

// Reads the weights of the chosen experts alone. Routes are the router's with expert_run_pairs(rows).
void experts(const ExpertsArgs& args, Stream stream);

}  // namespace dlf::cuda
