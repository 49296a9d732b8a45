#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "fusion/rule.h"

namespace dlf {

inline constexpr int64_t kMostContext = int64_t{1} << 24;
inline constexpr int64_t kMostBatch = 1024;
inline constexpr int64_t kMostLanes = 2 * kMaxExperts + 2;  // the large model, experts, their bases, a drafter

// Sizes and devices of a step loop.
struct EngineOptions {
  int64_t max_batch = 1;
  int64_t max_context = 2;
  int threads = 1;                 // of the CPU backend
  int64_t prefix_cache_bytes = 0;  // 0: every prompt is read from its beginning
  int64_t prompt_budget = 0;       // tokens of prompts that a step reads while requests decode; 0: one chunk
  std::vector<int> devices = {};   // CUDA device of each model; sequences live on the large model's. Empty: the CPU
  bool graph = true;               // on CUDA, capture a step and replay it; else launch its kernels one by one
  int64_t kv_cache_bytes = 0;      // of all models, the prefix cache included; 0: for max_batch whole contexts and it
  std::vector<int> split = {};     // further CUDA devices of the large model, which is split over them and its own
};

// Throws a ValueError for options that no backend can run.
void check(const EngineOptions& options);

// Seconds that the last step spent in each of its parts; all zero on a GPU, where parts are not timed. Also passes that
// it ran, and on a GPU alone what kind of step it was.
struct StepTimings {
  double large = 0;
  double small = 0;
  double solve = 0;
  double sample = 0;
  int small_passes = 0;  // of the models beside the large one, each counted; those that read prompts are not
  int drafted = 0;       // drafted tokens of each sequence
  int64_t drafter = 0;   // if any are drafted: a lane, or kPromptLookup
  bool graph = false;    // whether it was one launch
};

inline constexpr const char* kWeightsPart = "weights";

// A part of the device memory that a step loop takes.
struct MemoryPart {
  int device;
  int model;  // index of the model; -1: all models share it
  std::string name;
  int64_t bytes;
};

}  // namespace dlf
