#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>

namespace dlf::cuda {

// y = attention of the last tokens of a prompt, q and y [rows, heads, head_dim], over what they see of keys and values
// [kv_heads, end, head_dim]: all before, or the last `window` positions where that is not 0. By the attention library
// where it has a kernel for it, else with what torch has for any type and size.
void attend_prompt(const at::Tensor& q, const at::Tensor& keys, const at::Tensor& values, int64_t window, double scale,
                   const at::Tensor& y);

}  // namespace dlf::cuda
