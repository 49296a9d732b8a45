#pragma once

#include <cstddef>
#include <cstdint>

#include "fusion/bad_model.h"
#include "fusion/cuda/row_rule.h"
#include "support/cuda/stream.h"

// The fusion solver on CUDA: does what fusion/cpu/solver.h does, for all rows of a batch in one launch per kernel.
namespace dlf::cuda {

struct Logits {
  const float* data;
  int64_t stride;  // row r at data + r * stride
};

// FusionResult of a row.
struct FusionRecord {
  float alpha[kMaxExperts];  // before the solver: measured weights, and scales of targets
  float target_f[kMaxExperts];
  float target_g[kMaxExperts];
  float f;
  float g;
  int32_t sweeps;
  int32_t bad_model;
  int32_t selected;  // the expert whose curve passes nearest the targets; −1 where none is selected
  int32_t closed;    // 1: the gate of the rule was closed, and the fused logits are the large model's
};

struct FusionArgs {
  Logits large;
  Logits experts[kMaxExperts];
  Logits bases[kMaxExperts];  // may repeat one pointer, which is then read once
  float* fused;               // [rows, vocab], row r at fused + r * fused_stride
  int64_t fused_stride;
  FusionRecord* records;  // [rows]
  const int32_t* active;  // [rows], 0 to skip a row; null to skip none
  const RowRule* rules;   // that of row r at r % rule_count
  int rule_count;
  uint32_t kernels;  // SolverKernels to launch; each leaves alone the rows whose rules do not have it
  int32_t* opened;   // set to 1 by kGateKernel if a gate is open; or null
  int rows;
  int expert_count;
  int64_t vocab;
};

// How the work is spread over the card.
struct FusionShape {
  int cluster;       // blocks per row: 1, 2, 4, 8 or 16
  int shared_bytes;  // most for a block: parts that don't grow with the vocabulary, and as many logits as fit
};

// Shape for the current device and the vocabulary; it depends on nothing else.
FusionShape fusion_shape(int64_t vocab);

// Decides the gates of rows with kGateKernel. A later solve() without kGateKernel uses what they are.
void close_gates(const FusionArgs& args, Stream stream);

// Solves and fuses all rows. The fused logits of a row whose record names a bad model are undefined.
void solve(const FusionArgs& args, Stream stream);
void solve(const FusionArgs& args, const FusionShape& shape, Stream stream);

}  // namespace dlf::cuda
