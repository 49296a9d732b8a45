#pragma once

#include "engine/cuda/step_loop.h"
#include "engine/step_loop.h"
#include "model/cuda/decoder.h"
#include "sampling/cuda/sampler_state.h"

namespace dlf::cuda {

inline constexpr int kTopCapacity = 64;  // what a request may ask for as `logprobs`

// Tokens of all sequences that a pass reads, and a step samples, at most.
int most_tokens(const CudaOptions& options);
// And how many with kernels whose rows do not depend on each other.
int exact_tokens(const FusionPlan& plan);
DecoderShape shape_of(const FusionPlan& plan, size_t model, const CudaOptions& options);
SamplerState::Size sampler_size(const FusionPlan& plan, const CudaOptions& options);

// Throws where a device is missing or has no room for what is to go there, saying how many bytes that takes and how
// many are free. Allocates nothing.
void check_devices(const FusionPlan& plan, const Models& models, const CudaOptions& options, const Adapters& adapters);

}  // namespace dlf::cuda
