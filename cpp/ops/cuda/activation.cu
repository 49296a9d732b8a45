#include "ops/cuda/activation.h"
#include "ops/cuda/linear_epilogue.h"
#include "ops/cuda/vector.h"
#include "support/cuda/launch.h"

namespace dlf::cuda {
namespace {

using ops::SwiGluArgs;

constexpr int kThreads = 128;

// Each thread takes N neighbouring values.
template <typename T, int N>
__global__ void swiglu_kernel(SwiGluArgs args) {
  await_inputs();
  const int i = static_cast<int>(blockIdx.x * kThreads + threadIdx.x) * N;
  if (i >= args.size) {
    return;
  }
  const auto row = static_cast<int64_t>(blockIdx.y);
  const int64_t from = row * args.stride + i;
  const auto gates = load<T, N>(static_cast<const T*>(args.gate) + from);
  const auto ups = load<T, N>(static_cast<const T*>(args.up) + from);
  Vector<T, N> y;
#pragma unroll
  for (int j = 0; j < N; ++j) {
    y.at[j] = from_float<T>(swiglu_of(to_float(gates.at[j]), to_float(ups.at[j])));
  }
  store(static_cast<T*>(args.y) + row * args.size + i, y);
}

template <typename T, int N>
void start(const SwiGluArgs& args, Stream stream) {
  const auto blocks = static_cast<unsigned>((args.size / N + kThreads - 1) / kThreads);
  launch_early(swiglu_kernel<T, N>, {dim3(blocks, static_cast<unsigned>(args.rows)), dim3(kThreads)}, stream, args);
}

}  // namespace

void swiglu(const SwiGluArgs& args, Stream stream) {
  for_dtype(args.dtype, [&]<typename T>() {
    constexpr uintptr_t kVector = 4 * sizeof(T);
    const bool vectors = args.size % 4 == 0 && args.stride % 4 == 0 &&
                         reinterpret_cast<uintptr_t>(args.gate) % kVector == 0 &&
                         reinterpret_cast<uintptr_t>(args.up) % kVector == 0;
    vectors ? start<T, 4>(args, stream) : start<T, 1>(args, stream);
  });
}

}  // namespace dlf::cuda
