#pragma once

#include <cstdint>
#include <cstring>

#include "support/host_device.h"

namespace dlf::ops {

inline constexpr int kMostExperts = 1024;

// Neighbouring pairs of one expert.
struct ExpertRun {
  int32_t expert;
  int32_t first;
  int32_t pairs;
};

// Which rows each expert of a layer gets. A row and one of its experts are a pair; pairs are sorted by expert, then by
// row.
struct Routes {
  int32_t* expert;     // [rows, chosen], from the largest logit to the smallest
  float* weight;       // [rows, chosen]
  int32_t* place;      // [rows, chosen]: the pair's place among all pairs
  int32_t* row;        // [pairs]
  ExpertRun* runs;     // [most_runs()]
  int32_t* run_count;  // [1]
};

// Routes rows to the experts with the largest logits, of equal ones to those with the lowest index. The weights are the
// softmax over all experts, or over the chosen ones (Shazeer et al., arXiv 1701.06538; Jiang et al., 2401.04088).
struct RouterArgs {
  const float* logits;      // [rows, experts]
  const int32_t* position;  // [rows], −1: the row is idle, and has no pairs; or null
  Routes routes;
  int rows;
  int experts;
  int chosen;
  int run_pairs;   // most pairs of a run
  bool normalise;  // softmax over the chosen experts
};

// Most runs of so many rows.
constexpr int64_t most_runs(int64_t rows, int64_t experts, int64_t chosen, int64_t run_pairs) {
  const int64_t pairs = rows * chosen;
  const int64_t runs = experts + pairs / run_pairs;
  return pairs < runs ? pairs : runs;
}

// A number that is larger for the expert to be chosen first, whatever the logit.
DLF_HOST_DEVICE inline uint64_t router_key(float logit, int expert) {
  const float value = logit + 0.0F;  // −0 becomes 0
  uint32_t bits;
  memcpy(&bits, &value, sizeof(bits));
  bits = (bits & 0x80000000U) != 0 ? ~bits : bits | 0x80000000U;
  return static_cast<uint64_t>(bits) << 32 | (0xffffffffU - static_cast<uint32_t>(expert));
}
DLF_HOST_DEVICE constexpr int expert_of_key(uint64_t key) {
  return static_cast<int>(0xffffffffU - static_cast<uint32_t>(key));
}

}  // namespace dlf::ops
