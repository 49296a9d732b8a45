#pragma once

#include <ATen/core/Tensor.h>

#include "ops/matrix.h"
#include "support/cpu_capability.h"
#include "support/thread_team.h"

namespace dlf::ops {

// Whether weights of both types read activations in one form.
constexpr bool read_alike(MatrixType a, MatrixType b) { return a == b || (is_quantized(a) && is_quantized(b)); }

// Sums of the values of groups. A product of weights + offset takes offset * `value` away; one of weights with a
// minimum adds minimum * `scaled`.
struct GroupSums {
  int32_t* value;
  float* scaled;  // value * scale

  GroupSums from(int64_t group) const { return {value + group, scaled + group}; }
};

// Rows of x as the products of some types of weights read them.
struct LinearInputRows {
  const float* x;  // [rows, in]
  int64_t in;
  int64_t stride;  // in, rounded up to whole groups
  // For bfloat16 weights: x rounded to the nearest, zero beyond in.
  uint16_t* bfloat16;  // [rows, stride]
  // For weights in tiles: x = value * scale, in groups of kInputGroup with their own scale, zero beyond in.
  int8_t* value;        // [rows, stride]
  float* scale;         // [rows, stride / kInputGroup]
  GroupSums sums;       // of groups: [rows, stride / kInputGroup]
  GroupSums half_sums;  // of half groups: [rows, stride / kHalfGroup]

  // The rows from `row` on.
  LinearInputRows from(int64_t row) const {
    const int64_t group = row * (stride / kInputGroup);
    return {x + row * in,
            in,
            stride,
            bfloat16 + row * stride,
            value + row * stride,
            scale + group,
            sums.from(group),
            half_sums.from(2 * group)};
  }
};

// Scratch memory for the input of linear layers: weights of 16 bits multiply activations of 16 bits, weights of 8 bits
// and fewer multiply activations of 8 bits, as is common.
class LinearInput {
 public:
  LinearInput(int64_t max_rows, int64_t max_in);

  // Converts the rows of x for weights of `type`, and of all types that read the same; the result is valid until the
  // next call.
  LinearInputRows prepare(const float* x, int64_t rows, int64_t in, MatrixType type, ThreadTeam& team);

 private:
  at::Tensor values_;  // bfloat16 or int8
  at::Tensor scales_;
  at::Tensor sums_;         // [max_rows, 3 * groups]: of groups and half groups
  at::Tensor scaled_sums_;  // likewise
};

// Rows [begin, end).
DLF_CPU_KERNEL(round_input_kernel, const LinearInputRows& input, int64_t begin, int64_t end);
DLF_CPU_KERNEL(quantize_input_kernel, const LinearInputRows& input, int64_t begin, int64_t end);

}  // namespace dlf::ops
