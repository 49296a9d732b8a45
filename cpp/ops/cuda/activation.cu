#include "ops/cuda/activation.h"
#include "ops/cuda/gated.h"
#include "ops/cuda/vector.h"
#include "support/cuda/launch.h"

namespace dlf::cuda {
namespace {

using ops::Activation;
using ops::ActivationArgs;

constexpr int kThreads = 128;

// Each thread takes N neighbouring values.
template <typename T, int N, Activation A>
__global__ void activation_kernel(ActivationArgs args) {
  await_inputs();
  const int i = static_cast<int>(blockIdx.x * kThreads + threadIdx.x) * N;
  if (i >= args.size) {
    return;
  }
  const auto row = static_cast<int64_t>(blockIdx.y);
  const float factor = args.row_gate != nullptr ? 1.0F / (1.0F + expf(-args.row_gate[row])) : 1.0F;
  const int64_t from = row * args.stride + i;
  const auto ups = load<T, N>(static_cast<const T*>(args.up) + from);
  Vector<T, N> y;
  if (args.gate != nullptr) {
    const auto gates = load<T, N>(static_cast<const T*>(args.gate) + from);
#pragma unroll
    for (int j = 0; j < N; ++j) {
      y.at[j] = from_float<T>(gated_of<A>(to_float(gates.at[j]), to_float(ups.at[j])) * factor);
    }
  } else {
#pragma unroll
    for (int j = 0; j < N; ++j) {
      y.at[j] = from_float<T>(gated_of<A>(to_float(ups.at[j]), 1.0F) * factor);
    }
  }
  store(static_cast<T*>(args.y) + row * args.size + i, y);
}

template <typename T, int N>
void start(const ActivationArgs& args, Stream stream) {
  const auto blocks = static_cast<unsigned>((args.size / N + kThreads - 1) / kThreads);
  const Shape shape = {dim3(blocks, static_cast<unsigned>(args.rows)), dim3(kThreads)};
  switch (args.activation) {
    case Activation::silu:
      return launch_early(activation_kernel<T, N, Activation::silu>, shape, stream, args);
    case Activation::gelu:
      return launch_early(activation_kernel<T, N, Activation::gelu>, shape, stream, args);
    case Activation::gelu_tanh:
      return launch_early(activation_kernel<T, N, Activation::gelu_tanh>, shape, stream, args);
  }
}

}  // namespace

void activate(const ActivationArgs& args, Stream stream) {
  for_dtype(args.dtype, [&]<typename T>() {
    constexpr uintptr_t kVector = 4 * sizeof(T);
    const bool vectors = args.size % 4 == 0 && args.stride % 4 == 0 &&
                         reinterpret_cast<uintptr_t>(args.gate) % kVector == 0 &&
                         reinterpret_cast<uintptr_t>(args.up) % kVector == 0;
    vectors ? start<T, 4>(args, stream) : start<T, 1>(args, stream);
  });
}

}  // namespace dlf::cuda
