#include "ops/cpu/quantize.h"

#include <ATen/ops/empty.h>
#include <c10/util/BFloat16.h>
#include <c10/util/Exception.h>

#include <algorithm>
#include <vector>

namespace dlf::ops {
namespace {

// Writes one output channel's weights into a tile [in, kTileOutputs].
template <typename Element>
void spread(const Element* from, int64_t count, float* to) {
  for (int64_t i = 0; i < count; ++i) {
    to[i * kTileOutputs] = static_cast<float>(from[i]);
  }
}

}  // namespace

Tiles quantize(const at::Tensor& weight, MatrixType type, int64_t group, ThreadTeam& team) {
  TORCH_CHECK_VALUE(weight.dim() == 2 && weight.is_contiguous() && weight.device().is_cpu() &&
                        (weight.scalar_type() == at::kFloat || weight.scalar_type() == at::kBFloat16),
                    "only a contiguous float32 or bfloat16 matrix on the CPU can be quantized");
  TORCH_CHECK_VALUE(
      (type == MatrixType::int8 && group == 0) || (type == MatrixType::int4 && (group == 32 || group == 64)),
      "int8 has one scale for each channel, int4 one for each group of 32 or 64");
  const int64_t out = weight.size(0);
  const int64_t in = weight.size(1);
  const int64_t count = tiles(out);
  const int64_t padded = padded_inputs(in, group);
  Tiles result;
  if (type == MatrixType::int8) {
    result.data = at::empty({count, padded / 4, kTileOutputs, 4}, at::kChar);
    result.scale = at::empty({count, kTileOutputs}, at::kFloat);
  } else {
    result.data = at::empty({count, padded / 8, kTileOutputs, 4}, at::kByte);
    result.scale = at::empty({count, padded / group, kTileOutputs}, at::kBFloat16);
  }
  const auto kernel =
      type == MatrixType::int8 ? DLF_CPU_DISPATCH(quantize_int8_kernel) : DLF_CPU_DISPATCH(quantize_int4_kernel);
  auto* data = static_cast<char*>(result.data.mutable_data_ptr());
  auto* scale = static_cast<char*>(result.scale.mutable_data_ptr());
  const auto data_bytes = static_cast<int64_t>(result.data.nbytes()) / count;
  const auto scale_bytes = static_cast<int64_t>(result.scale.nbytes()) / count;
  team.parallel_for(count, 1, [&](int64_t begin, int64_t end) {
    std::vector<float> values(kTileOutputs * padded);
    for (int64_t tile = begin; tile < end; ++tile) {
      std::fill(values.begin(), values.end(), 0.0F);
      for (int64_t channel = 0; channel < kTileOutputs && tile * kTileOutputs + channel < out; ++channel) {
        const int64_t from = (tile * kTileOutputs + channel) * in;
        if (weight.scalar_type() == at::kFloat) {
          spread(weight.const_data_ptr<float>() + from, in, &values[channel]);
        } else {
          spread(weight.const_data_ptr<c10::BFloat16>() + from, in, &values[channel]);
        }
      }
      kernel({values.data(), padded, group, data + tile * data_bytes, scale + tile * scale_bytes});
    }
  });
  return result;
}

}  // namespace dlf::ops
