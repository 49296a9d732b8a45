#pragma once

#include <ATen/core/Tensor.h>

#include "fusion/options.h"

namespace dlf {

struct FusionTensors {
  at::Tensor logits;     // [B, V] float32, where the solver ran
  at::Tensor alpha;      // [B, T] double, as all that follow on the CPU
  at::Tensor f;          // [B]
  at::Tensor g;          // [B]
  at::Tensor target_f;   // [B, T]
  at::Tensor target_g;   // [B, T]
  at::Tensor passes;     // [B] int64
  at::Tensor bad_model;  // [B] int64, as FusionResult::bad_model
};

// Solves and fuses a batch on a CUDA device, and waits for it. large [B, V], experts [B, T, V], bases [B, V] or
// [B, T, V]: contiguous, float32, on whichever device.
FusionTensors solve_on_cuda(const at::Tensor& large, const at::Tensor& experts, const at::Tensor& bases,
                            const FusionOptions& options, int device);

}  // namespace dlf
