#pragma once

#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>

#include <utility>

namespace dlf {

// Result of solving a batch, as tensors.
struct FusionTensors {
  FusionTensors(at::Tensor fused, int64_t experts)
      : logits(std::move(fused)),
        alpha(at::empty({logits.size(0), experts}, at::kDouble)),
        f(at::empty({logits.size(0)}, at::kDouble)),
        g(at::empty({logits.size(0)}, at::kDouble)),
        target_f(at::empty({logits.size(0), experts}, at::kDouble)),
        target_g(at::empty({logits.size(0), experts}, at::kDouble)),
        sweeps(at::empty({logits.size(0)}, at::kLong)),
        bad_model(at::empty({logits.size(0)}, at::kLong)) {}

  at::Tensor logits;     // [B, V] float32, on the solver's device
  at::Tensor alpha;      // [B, T] double; this and all below are on the CPU
  at::Tensor f;          // [B]
  at::Tensor g;          // [B]
  at::Tensor target_f;   // [B, T]
  at::Tensor target_g;   // [B, T]
  at::Tensor sweeps;     // [B] int64
  at::Tensor bad_model;  // [B] int64, as FusionResult::bad_model
};

}  // namespace dlf
