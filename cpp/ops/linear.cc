#include "ops/linear.h"

#include <ATen/core/Tensor.h>
#include <ATen/ops/from_blob.h>
#include <ATen/ops/mm.h>

namespace dlf::ops {
namespace {

constexpr int64_t kPrefillRows = 16;  // below this, reading the weights costs more than multiplying

at::Tensor view(const void* data, int64_t rows, int64_t columns, at::ScalarType type) {
  return at::from_blob(const_cast<void*>(data), {rows, columns}, at::TensorOptions().dtype(type));
}

}  // namespace

void linear(const LinearArgs& args, ThreadTeam& team) {
  const auto kernel = DLF_CPU_DISPATCH(linear_kernel);
  team.parallel_for(args.out, 16, [&](int64_t begin, int64_t end) { kernel(args, begin, end); });
}

void linear_prefill(const LinearArgs& args, ThreadTeam& team) {
  if (args.rows <= kPrefillRows) {
    return linear(args, team);
  }
  at::Tensor x = view(args.x, args.rows, args.in, at::kFloat);
  const bool is_float32 = args.dtype == DType::float32;
  const at::ScalarType type = is_float32 ? at::kFloat : at::kBFloat16;
  const at::Tensor product = at::mm(x.to(type), view(args.weight, args.out, args.in, type).t()).to(at::kFloat);
  const float* from = product.const_data_ptr<float>();
  team.parallel_for(args.rows, 1, [&](int64_t begin, int64_t end) {
    for (int64_t row = begin; row < end; ++row) {
      float* y = args.y + row * args.out;
      for (int64_t o = 0; o < args.out; ++o) {
        const float value = from[row * args.out + o] + (args.bias ? args.bias[o] : 0.0F);
        y[o] = args.accumulate ? y[o] + value : value;
      }
    }
  });
}

}  // namespace dlf::ops
