#pragma once

#include "ops/experts.h"
#include "support/cuda/stream.h"

namespace dlf::cuda {

// The experts are in device memory; `like` is one of them on the host, for the sizes and types of all.
struct ExpertsArgs : ops::ExpertsArgs {
  ops::Expert like;
  const int32_t* position;  // [rows], −1: the row is neither read nor written; or null
  int most_runs;            // that the router can make of so many rows
};

inline constexpr int kExpertStepRows = 64;  // most rows that run as those of a step

// Most pairs of a run: rows that share one reading of an expert's weights. It may depend on the number of rows, since
// each row's sums are the same in any run.
int expert_run_pairs(int rows);

// Reads the weights of the chosen experts alone. Routes are the router's with expert_run_pairs(rows).
void experts(const ExpertsArgs& args, Stream stream);

}  // namespace dlf::cuda
