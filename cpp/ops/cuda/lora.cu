#include "ops/cuda/lora.h"
#include "ops/cuda/vector.h"
#include "support/cuda/launch.h"

namespace dlf::cuda {
namespace {

using ops::LoraUpdate;

constexpr int kThreads = 256;
constexpr int kWarps = kThreads / kWarp;
constexpr int kOutputs = 4096;  // of a block

// One block per row, product and kOutputs outputs: its warps put x A^T into shared memory, an element each, and
// multiply it by B^T from there. Both thin matrices are read along their long side, once per row: they are small, and
// the second row finds them in the cache.
template <typename T>
__global__ void lora_kernel(LoraArgs args) {
  await_inputs();
  const auto row = static_cast<int>(blockIdx.x);
  if (args.position != nullptr && args.position[row] < 0) {
    return;
  }
  const auto product = static_cast<int>(blockIdx.y);
  const LoraUpdate update = args.updates[args.adapted.of(row) * kMostUpdates + product];
  const auto begin = static_cast<int>(blockIdx.z) * kOutputs;
  const int end = min(update.out, begin + kOutputs);
  if (update.rank == 0 || begin >= end) {
    return;
  }
  float* inner = shared_memory<float>();
  const float scale = update.scale * args.multiplier;
  const T* a = static_cast<const T*>(update.a);
  if (args.token != nullptr) {
    const int32_t token = args.token[row / args.token_lanes];
    if (token < 0) {
      return;
    }
    for (int r = static_cast<int>(threadIdx.x); r < update.rank; r += kThreads) {
      inner[r] = scale * to_float(a[static_cast<int64_t>(token) * update.rank + r]);
    }
  } else {
    const T* x = static_cast<const T*>(args.x) + static_cast<int64_t>(row) * args.x_stride;
    for (int r = warp_index(); r < update.rank; r += kWarps) {
      float sum = 0.0F;
      for (int i = lane_index(); i < args.in; i += kWarp) {
        sum = fmaf(to_float(x[i]), to_float(a[static_cast<int64_t>(r) * args.in + i]), sum);
      }
      sum = warp_sum(sum);
      if (lane_index() == 0) {
        inner[r] = scale * sum;
      }
    }
  }
  __syncthreads();
  const T* b = static_cast<const T*>(update.b);
  const int64_t first = static_cast<int64_t>(row) * args.y_stride + args.offset[product];
  const auto add = [&]<typename Y>(Y* y) {
    for (int o = begin + static_cast<int>(threadIdx.x); o < end; o += kThreads) {
      float sum = to_float(y[o]);
      for (int r = 0; r < update.rank; ++r) {
        sum = fmaf(inner[r], to_float(b[static_cast<int64_t>(r) * update.out + o]), sum);
      }
      y[o] = from_float<Y>(sum);
    }
  };
  args.y_float ? add(static_cast<float*>(args.y) + first) : add(static_cast<T*>(args.y) + first);
}

}  // namespace

void lora(const LoraArgs& args, Stream stream) {
  Shape shape = {};
  shape.grid = dim3(static_cast<unsigned>(args.rows), static_cast<unsigned>(args.products),
                    static_cast<unsigned>((args.y_stride + kOutputs - 1) / kOutputs));
  shape.block = dim3(kThreads);
  shape.shared_bytes = static_cast<size_t>(args.max_rank) * sizeof(float);
  for_dtype(args.dtype, [&]<typename T>() { launch_early(lora_kernel<T>, shape, stream, args); });
}

}  // namespace dlf::cuda
