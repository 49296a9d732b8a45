#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>

namespace dlf::cuda {

// Computes y = attention of the last tokens of a prompt, q and y [rows, heads, head_dim], over keys and values
// [kv_heads, end, head_dim]: over all positions up to each token, or the last `window` of them if that is not 0. Uses
// the attention library if it has a kernel for it, else torch's general attention.
void attend_prompt(const at::Tensor& q, const at::Tensor& keys, const at::Tensor& values, int64_t window, double scale,
                   const at::Tensor& y);

}  // namespace dlf::cuda
