#include <algorithm>

#include "ops/cuda/norm.h"
#include "ops/cuda/vector.h"
#include "support/cuda/launch.h"

namespace dlf::cuda {
namespace {

using ops::NormArgs;

constexpr int kMaxThreads = 512;
constexpr int kMaxWarps = kMaxThreads / kWarp;
constexpr int kHeld = 4;  // vectors of a row that a thread keeps in registers

// One block per row. It needs almost no shared memory, so that it fits beside the product before it. Weights are
// prefetched before the row is ready.
template <typename T, int N>
__global__ void __launch_bounds__(kMaxThreads, 3) rms_norm_kernel(NormArgs args) {
  using Floats = Vector<float, N>;
  const int thread = static_cast<int>(threadIdx.x);
  const int step = static_cast<int>(blockDim.x) * N;
  const int64_t first = static_cast<int64_t>(blockIdx.x) * args.size;
  float* warp_sums = shared_memory<float>();  // [kMaxWarps]

  for (int i = thread * N; i < args.size; i += step) {
    prefetch(args.weight + i);
  }
  await_inputs();

  float squares = 0.0F;
  const auto read = [&](int i) {
    auto values = load<float, N>(args.x + first + i);
    if (args.branch != nullptr) {
      const auto branch = load<T, N>(static_cast<const T*>(args.branch) + first + i);
#pragma unroll
      for (int j = 0; j < N; ++j) {
        values.at[j] += to_float(branch.at[j]);
      }
      store(args.x + first + i, values);
    }
#pragma unroll
    for (int j = 0; j < N; ++j) {
      squares = fmaf(values.at[j], values.at[j], squares);
    }
    return values;
  };
  Floats held[kHeld] = {};
#pragma unroll
  for (int k = 0; k < kHeld; ++k) {
    if (thread * N + k * step < args.size) {
      held[k] = read(thread * N + k * step);
    }
  }
  for (int i = thread * N + kHeld * step; i < args.size; i += step) {
    read(i);
  }

  squares = warp_sum(squares);
  if (thread % kWarp == 0) {
    warp_sums[thread / kWarp] = squares;
  }
  __syncthreads();
  const int lane = thread % kWarp;
  const float total = warp_sum(lane < static_cast<int>(blockDim.x) / kWarp ? warp_sums[lane] : 0.0F);
  const float scale = 1.0F / sqrtf(total / static_cast<float>(args.size) + args.epsilon);

  const auto write = [&](int i, const Floats& values) {
    const auto weight = load<float, N>(args.weight + i);
    Vector<T, N> y;
#pragma unroll
    for (int j = 0; j < N; ++j) {
      y.at[j] = from_float<T>(values.at[j] * scale * weight.at[j]);
    }
    store(static_cast<T*>(args.y) + first + i, y);
  };
#pragma unroll
  for (int k = 0; k < kHeld; ++k) {
    if (thread * N + k * step < args.size) {
      write(thread * N + k * step, held[k]);
    }
  }
  for (int i = thread * N + kHeld * step; i < args.size; i += step) {
    write(i, load<float, N>(args.x + first + i));
  }
}

template <typename T, int N>
void start(const NormArgs& args, Stream stream) {
  const int threads = std::min((args.size / N + kWarp - 1) / kWarp * kWarp, kMaxThreads);
  launch_early(
      rms_norm_kernel<T, N>,
      {dim3(static_cast<unsigned>(args.rows)), dim3(static_cast<unsigned>(threads)), sizeof(float) * kMaxWarps}, stream,
      args);
}

}  // namespace

void rms_norm(const NormArgs& args, Stream stream) {
  for_dtype(args.dtype,
            [&]<typename T>() { args.size % 4 == 0 ? start<T, 4>(args, stream) : start<T, 1>(args, stream); });
}

}  // namespace dlf::cuda
