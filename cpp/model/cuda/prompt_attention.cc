#include "model/cuda/prompt_attention.h"

#include <ATen/ops/arange.h>
#include <ATen/ops/gt.h>
#include <ATen/ops/le.h>
#include <ATen/ops/logical_and.h>
#include <ATen/ops/logical_not.h>
#include <ATen/ops/matmul.h>
#include <ATen/ops/scaled_dot_product_attention.h>
#include <ATen/ops/softmax.h>
#include <ATen/ops/sub.h>

#include <cmath>

#include "support/cuda/runtime.h"

namespace dlf::cuda {
namespace {

// Which of the positions [0, end) each of the last `rows` ones sees: [rows, end].
at::Tensor seen(int64_t rows, int64_t end, int64_t window, const at::TensorOptions& options) {
  const auto integers = options.dtype(at::kInt);
  const at::Tensor row = at::arange(end - rows, end, integers).unsqueeze(1);
  const at::Tensor column = at::arange(end, integers).unsqueeze(0);
  const at::Tensor earlier = at::le(column, row);
  return window > 0 ? at::logical_and(earlier, at::gt(column, at::sub(row, window))) : earlier;
}

void masked_attention(const at::Tensor& q, const at::Tensor& keys, const at::Tensor& values, int64_t window,
                      double scale, const at::Tensor& y) {
  const int64_t end = keys.size(1);
  const bool causal = end == q.size(0) && (window == 0 || window >= end);
  const auto mask = causal ? c10::optional<at::Tensor>() : seen(q.size(0), end, window, q.options());
  y.copy_(at::scaled_dot_product_attention(q.transpose(0, 1).unsqueeze(0), keys.unsqueeze(0), values.unsqueeze(0), mask,
                                           /*dropout_p=*/0.0, causal, scale,
                                           /*enable_gqa=*/q.size(1) != keys.size(0))
              .squeeze(0)
              .transpose(0, 1));
}

void capped_attention(const at::Tensor& q, const at::Tensor& keys, const at::Tensor& values, int64_t window,
                      double scale, double softcap, const at::Tensor& y) {
  const int64_t rows = q.size(0);
  const int64_t end = keys.size(1);
  const int64_t share = q.size(1) / keys.size(0);  // query heads of a key-value head
  const at::Tensor hidden = at::logical_not(seen(rows, end, window, q.options()));
  for (int64_t head = 0; head < keys.size(0); ++head) {
    const at::Tensor queries = q.narrow(1, head * share, share).transpose(0, 1).to(at::kFloat);
    at::Tensor scores = at::matmul(queries, keys[head].to(at::kFloat).t());  // [share, rows, end]
    scores.mul_(scale / softcap).tanh_().mul_(softcap).masked_fill_(hidden, -INFINITY);
    const at::Tensor weights = at::softmax(scores, -1);
    y.narrow(1, head * share, share).copy_(at::matmul(weights, values[head].to(at::kFloat)).transpose(0, 1));
  }
}

}  // namespace

void attend_prompt(const at::Tensor& q, const at::Tensor& keys, const at::Tensor& values, int64_t window, double scale,
                   double softcap, const at::Tensor& y) {
  if (softcap > 0) {
    return capped_attention(q, keys, values, window, scale, softcap, y);
  }
  if (!prompt_attention(q, keys, values, window, scale, y)) {
    masked_attention(q, keys, values, window, scale, y);
  }
}

// Scores before and after the softmax, the mask, and a head's keys, values, queries and results.
int64_t capped_attention_bytes(const ModelSpec& spec, int64_t rows, int64_t max_context) {
  const AttentionSpec& attention = spec.attention;
  const int64_t share = attention.heads / attention.kv_heads;
  return (2 * share * 4 + 3) * rows * max_context + (2 * max_context + 2 * share * rows) * attention.head_dim * 4;
}

}  // namespace dlf::cuda
