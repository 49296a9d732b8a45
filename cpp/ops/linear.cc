#include "ops/linear.h"

#include <ATen/Parallel.h>
#include <ATen/core/Tensor.h>
#include <ATen/ops/from_blob.h>
#include <ATen/ops/mm.h>

namespace dlf::ops {
namespace {

constexpr int64_t kPrefillRows = 16;  // below this, reading the weights costs more than multiplying
constexpr int64_t kPrefillOutputs = 32;

// torch's own threads spin for milliseconds after a product and would keep ours from their cores: here it has one.
// The number belongs to each thread; what a new thread starts with is put back in the end.
class TorchThreads {
 public:
  TorchThreads() : before_(at::get_num_threads()) { at::set_num_threads(1); }
  ~TorchThreads() { at::set_num_threads(before_); }
  TorchThreads(const TorchThreads&) = delete;
  TorchThreads& operator=(const TorchThreads&) = delete;

 private:
  int before_;
};

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
  const TorchThreads caller;
  const at::ScalarType type = args.dtype == DType::float32 ? at::kFloat : at::kBFloat16;
  const at::Tensor x = view(args.x, args.rows, args.in, at::kFloat).to(type);
  const at::Tensor weight = view(args.weight, args.out, args.in, type);
  team.parallel_for(args.out, kPrefillOutputs, [&](int64_t begin, int64_t end) {
    at::set_num_threads(1);
    const at::Tensor product = at::mm(x, weight.slice(0, begin, end).t()).to(at::kFloat);
    const float* from = product.const_data_ptr<float>();
    for (int64_t row = 0; row < args.rows; ++row) {
      float* y = args.y + row * args.out;
      for (int64_t o = begin; o < end; ++o) {
        const float value = *from++ + (args.bias ? args.bias[o] : 0.0F);
        y[o] = args.accumulate ? y[o] + value : value;
      }
    }
  });
}

}  // namespace dlf::ops
