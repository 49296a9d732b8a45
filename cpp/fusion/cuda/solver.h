#pragma once

#include <cstddef>
#include <cstdint>

#include "fusion/options.h"
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
  int32_t passes;
  int32_t bad_model;
};

struct FusionArgs {
  Logits large;
  Logits experts[kMaxExperts];
  Logits bases[kMaxExperts];  // may repeat one pointer, which is then read once
  float* fused;               // [rows, vocab], row r at fused + r * fused_stride
  int64_t fused_stride;
  FusionRecord* records;   // [rows]
  const int32_t* active;   // [rows], 0 where the row is skipped; null where none is
  const uint32_t* chosen;  // [rows], bit t: the row uses expert t, else its logits aren't read; null: all experts
  int rows;
  int expert_count;
  int64_t vocab;
  Combine combine;
  Match match;
  uint32_t given;                // bit t: expert t has a given weight
  float alpha[kMaxExperts];      // which is this
  float alpha_max[kMaxExperts];  // of the others
};

// The arguments that options decide; the rest is empty.
inline FusionArgs fusion_args(const FusionOptions& options, int expert_count) {
  FusionArgs args = {};
  args.expert_count = expert_count;
  args.combine = options.combine;
  args.match = options.match;
  for (int t = 0; t < expert_count; ++t) {
    const ExpertWeight weight = options.weights.empty() ? ExpertWeight() : options.weights[t];
    args.given |= weight.solved() ? 0U : 1U << t;
    args.alpha[t] = static_cast<float>(weight.given.value_or(0.0));
    args.alpha_max[t] = static_cast<float>(weight.alpha_max);
  }
  return args;
}

// How the work lies on the card.
struct FusionShape {
  int cluster;       // blocks a row: 1, 2, 4, 8 or 16
  int shared_bytes;  // a block, for what doesn't change with the size of the vocabulary and for as many logits as fit
};

// The shape that suits the current device, and the vocabulary; it is the same for any number of rows.
FusionShape fusion_shape(const FusionArgs& args);

// A row whose record names a bad model has undefined fused logits.
void solve(const FusionArgs& args, Stream stream);
void solve(const FusionArgs& args, const FusionShape& shape, Stream stream);

}  // namespace dlf::cuda
