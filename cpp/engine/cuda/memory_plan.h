#pragma once

#include "engine/cache_size.h"
#include "engine/options.h"
#include "engine/plan.h"
#include "model/cuda/decoder.h"
#include "sampling/cuda/sampler_state.h"

namespace dlf::cuda {

inline constexpr int kTopCapacity = 64;  // most `logprobs` of a request

// Most tokens of all sequences that a pass reads, and a step samples.
int most_tokens(const EngineOptions& options);
// Most tokens for which a pass is bit-identical to single-token passes.
int exact_tokens(const FusionPlan& plan);
DecoderShape shape_of(const FusionPlan& plan, size_t model, const EngineOptions& options, const CacheSize& cache);
SamplerState::Size sampler_size(const FusionPlan& plan, const EngineOptions& options);

// Returns the options if every device is there and has room for its part. Throws otherwise, with the bytes needed and
// free. Allocates nothing.
EngineOptions checked(const FusionPlan& plan, const Models& models, const EngineOptions& options,
                      const Adapters& adapters);

}  // namespace dlf::cuda
