#include "ops/cuda/bias.h"
#include "support/cuda/launch.h"

namespace dlf::cuda {
namespace {

constexpr int kThreads = 256;

template <typename T>
__global__ void bias_kernel(BiasArgs args) {
  const int i = static_cast<int>(blockIdx.x * kThreads + threadIdx.x);
  if (i < args.size) {
    T& y = static_cast<T*>(args.y)[static_cast<int64_t>(blockIdx.y) * args.stride + i];
    y = from_float<T>(to_float(y) + args.bias[i]);
  }
}

}  // namespace

void add_bias(const BiasArgs& args, Stream stream) {
  const dim3 grid((args.size + kThreads - 1) / kThreads, args.rows);
  for_dtype(args.dtype, [&]<typename T>() { launch(bias_kernel<T>, {grid, dim3(kThreads)}, stream, args); });
}

}  // namespace dlf::cuda
