#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <functional>
#include <vector>

namespace dlf {

// Logits of a request's positions in a step, B rows: after its last token, then after each drafted one. The tensors are
// views where the step has them, and valid while the hook runs. The hook may change the last four: the next tokens are
// drawn from `fused`.
struct HookRows {
  int64_t request = 0;
  int64_t step = 0;                 // tokens that were decoded before the first row
  at::Tensor large;                 // [B, V]
  std::vector<at::Tensor> experts;  // T of [B, V]; undefined where a closed gate held the model back
  std::vector<at::Tensor> bases;    // T of [B, V]; undefined for an expert without a base
  at::Tensor fused;                 // [B, V], by the request's rule
  at::Tensor alpha;                 // [B, T]
  at::Tensor f, g;                  // [B]
};

// Shows the caller the logits of a request; returns false if the request is to fail.
using CallHook = std::function<bool(const HookRows&)>;

}  // namespace dlf
