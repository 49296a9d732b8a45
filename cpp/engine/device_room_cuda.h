#pragma once

#include "engine/step_loop.h"
#include "engine/step_loop_cuda.h"
#include "model/decoder_cuda.h"

namespace dlf::cuda {

inline constexpr int kTopCapacity = 64;  // what a request may ask for as `logprobs`

DecoderShape shape_of(const FusionPlan& plan, size_t model, const CudaOptions& options);

// Throws where a device is missing or has no room for what is to go there, saying how many bytes that takes and how
// many are free. Allocates nothing.
void check_devices(const FusionPlan& plan, const Models& models, const CudaOptions& options, const Adapters& adapters);

}  // namespace dlf::cuda
