#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "engine/step_loop.h"
#include "model/model_size.h"

namespace dlf {

inline constexpr int64_t kMaxCudaBatch = 256;  // sequences

struct CudaOptions {
  int64_t max_batch = 1;
  int64_t max_context = 2;
  std::vector<int> devices;  // of each model; sequences live on the large model's
  int64_t prefix_cache_bytes = 0;
  bool graph = true;  // whether a step is captured and replayed; else its kernels are launched one by one
};

// A part of what a step loop takes of a device's memory.
struct MemoryPart {
  int device;
  int model;  // among the plan's; -1: all share it
  std::string name;
  int64_t bytes;
};

// What make_cuda_step_loop() takes, the weights included, for models that need not be loaded; it refuses what has not
// so much memory free. Scoring takes the KV cache of one more sequence while it runs. Allocates nothing.
std::vector<MemoryPart> cuda_memory(const FusionPlan& plan, const std::vector<ModelSize>& models,
                                    const CudaOptions& options);

// The step loop on GPUs. Throws a ValueError or RuntimeError where it cannot run there, one that says how many bytes
// it would take and how many are free included; nothing is allocated then.
std::unique_ptr<StepLoop> make_cuda_step_loop(FusionPlan plan, const Models& models, const CudaOptions& options,
                                              const Adapters& adapters = {});

}  // namespace dlf
