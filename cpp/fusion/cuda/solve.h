#pragma once

#include "fusion/fusion_tensors.h"
#include "fusion/options.h"

namespace dlf {

// Solves and fuses a batch on a CUDA device, and waits for it. large [B, V], experts [B, T, V], bases [B, V] or
// [B, T, V]: contiguous, float32, on whichever device.
FusionTensors solve_on_cuda(const at::Tensor& large, const at::Tensor& experts, const at::Tensor& bases,
                            const FusionOptions& options, int device);

}  // namespace dlf
