#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>

#include "model/spec.h"

namespace dlf::cuda {

// Computes y = attention of the last tokens of a prompt, q and y [rows, heads, head_dim], over keys and values
// [kv_heads, end, head_dim]: over all positions up to each token, or the last `window` of them if that is not 0. Uses
// the attention library if it has a kernel for it, else torch's general attention. Neither has capped scores, which are
// computed by the matrix library, in float32, one key-value head after the other.
void attend_prompt(const at::Tensor& q, const at::Tensor& keys, const at::Tensor& values, int64_t window, double scale,
                   double softcap, const at::Tensor& y);

// Bytes that capped attention takes meanwhile.
int64_t capped_attention_bytes(const ModelSpec& spec, int64_t rows, int64_t max_context);

}  // namespace dlf::cuda
