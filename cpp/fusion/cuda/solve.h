#pragma once

#include <span>

#include "fusion/fusion_tensors.h"
#include "fusion/rule.h"

namespace dlf {

// Solves and fuses a batch on a CUDA device, and waits for it. large [B, V], experts [B, T, V], bases [B, V] or
// [B, T, V]: contiguous, float32, on any device. `rules` holds one rule for all rows, or one for each.
FusionTensors solve_on_cuda(const at::Tensor& large, const at::Tensor& experts, const at::Tensor& bases,
                            std::span<const Rule> rules, int device);

}  // namespace dlf
