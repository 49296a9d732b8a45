#include "model/cuda/prompt_attention.h"

#include <ATen/ops/arange.h>
#include <ATen/ops/gt.h>
#include <ATen/ops/le.h>
#include <ATen/ops/logical_and.h>
#include <ATen/ops/scaled_dot_product_attention.h>
#include <ATen/ops/sub.h>

#include "support/cuda/runtime.h"

namespace dlf::cuda {
namespace {

void masked_attention(const at::Tensor& q, const at::Tensor& keys, const at::Tensor& values, int64_t window,
                      double scale, const at::Tensor& y) {
  const int64_t end = keys.size(1);
  const int64_t start = end - q.size(0);
  c10::optional<at::Tensor> mask;
  const bool causal = start == 0 && (window == 0 || window >= end);
  if (!causal) {
    const auto integers = q.options().dtype(at::kInt);
    const at::Tensor row = at::arange(start, end, integers).unsqueeze(1);
    const at::Tensor column = at::arange(end, integers).unsqueeze(0);
    mask = at::le(column, row);
    if (window > 0) {
      mask = at::logical_and(*mask, at::gt(column, at::sub(row, window)));
    }
  }
  y.copy_(at::scaled_dot_product_attention(q.transpose(0, 1).unsqueeze(0), keys.unsqueeze(0), values.unsqueeze(0), mask,
                                           /*dropout_p=*/0.0, causal, scale,
                                           /*enable_gqa=*/q.size(1) != keys.size(0))
              .squeeze(0)
              .transpose(0, 1));
}

}  // namespace

void attend_prompt(const at::Tensor& q, const at::Tensor& keys, const at::Tensor& values, int64_t window, double scale,
                   const at::Tensor& y) {
  if (!prompt_attention(q, keys, values, window, scale, y)) {
    masked_attention(q, keys, values, window, scale, y);
  }
}

}  // namespace dlf::cuda
