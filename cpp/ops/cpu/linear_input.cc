#include "ops/cpu/linear_input.h"

#include <ATen/ops/empty.h>
#include <c10/util/Exception.h>

namespace dlf::ops {

LinearInput::LinearInput(int64_t max_rows, int64_t max_in)
    : values_(at::empty({max_rows, round_up(max_in, kInputGroup)}, at::kBFloat16)),
      scales_(at::empty({max_rows, round_up(max_in, kInputGroup) / kInputGroup}, at::kFloat)),
      sums_(at::empty({max_rows, 3 * round_up(max_in, kInputGroup) / kInputGroup}, at::kInt)),
      scaled_sums_(at::empty(sums_.sizes(), at::kFloat)) {}

LinearInputRows LinearInput::prepare(const float* x, int64_t rows, int64_t in, MatrixType type, ThreadTeam& team) {
  const int64_t stride = round_up(in, kInputGroup);
  TORCH_INTERNAL_ASSERT(rows * stride <= values_.numel());
  const GroupSums sums = {sums_.mutable_data_ptr<int32_t>(), scaled_sums_.mutable_data_ptr<float>()};
  const LinearInputRows input = {x,
                                 in,
                                 stride,
                                 static_cast<uint16_t*>(values_.mutable_data_ptr()),
                                 static_cast<int8_t*>(values_.mutable_data_ptr()),
                                 scales_.mutable_data_ptr<float>(),
                                 sums,
                                 sums.from(rows * (stride / kInputGroup))};
  if (type != MatrixType::float32) {
    const auto kernel =
        is_quantized(type) ? DLF_CPU_DISPATCH(quantize_input_kernel) : DLF_CPU_DISPATCH(round_input_kernel);
    team.parallel_for(rows, 4, [&](int64_t begin, int64_t end) { kernel(input, begin, end); });
  }
  return input;
}

}  // namespace dlf::ops
