#pragma once

#include <cstddef>
#include <cstdint>

#include "fusion/bad_model.h"
#include "fusion/cuda/row_rule.h"
#include "support/cuda/stream.h"

// The fusion solver on CUDA: what solver.h does on the CPU, for all rows of a batch in one launch.
namespace dlf::cuda {

struct Logits {
  const float* data;
  int64_t stride;  // row r at data + r * stride
};

// FusionResult of a row.
struct FusionRecord {
  float alpha[kMaxExperts];
  float target_f[kMaxExperts];
  float target_g[kMaxExperts];
  float f;
  float g;
  int32_t sweeps;
  int32_t bad_model;
};

struct FusionArgs {
  Logits large;
  Logits experts[kMaxExperts];
  Logits bases[kMaxExperts];  // may repeat one pointer, which is then read once
  float* fused;               // [rows, vocab], row r at fused + r * fused_stride
  int64_t fused_stride;
  FusionRecord* records;  // [rows]
  const int32_t* active;  // [rows], 0 where the row is skipped; null where none is
  const RowRule* rules;   // that of row r at r % rule_count
  int rule_count;
  uint32_t kernels;  // those of all rules: a row whose rule has another is left alone
  int rows;
  int expert_count;
  int64_t vocab;
};

// How the work lies on the card.
struct FusionShape {
  int cluster;       // blocks a row: 1, 2, 4, 8 or 16
  int shared_bytes;  // the most of a block, for what doesn't change with the vocabulary and for as many logits as fit
};

// The shape that suits the current device and the vocabulary; nothing else has a say in it.
FusionShape fusion_shape(int64_t vocab);

// A row whose record names a bad model has undefined fused logits.
void solve(const FusionArgs& args, Stream stream);
void solve(const FusionArgs& args, const FusionShape& shape, Stream stream);

}  // namespace dlf::cuda
