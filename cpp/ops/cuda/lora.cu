#include "ops/cuda/lora.h"
#include "ops/cuda/vector.h"
#include "support/cuda/launch.h"

namespace dlf::cuda {
namespace {

using ops::LoraUpdate;

constexpr int kThreads = 256;
constexpr int kWarps = kThreads / kWarp;

// One block per row and product: its warps put x A^T into shared memory, an element each, and multiply it by B^T from
// there. Both thin matrices are read along their long side, once per row: they are small, and the second row finds them
// in the cache.
template <typename T>
__global__ void lora_kernel(LoraArgs args) {
  await_inputs();
  const auto row = static_cast<int>(blockIdx.x);
  if (args.position != nullptr && args.position[row] < 0) {
    return;
  }
  const auto product = static_cast<int>(blockIdx.y);
  const int lane = args.lane >= 0 ? args.lane : row % args.lanes;
  const LoraUpdate update = args.updates[lane * kMostUpdates + product];
  if (update.rank == 0) {
    return;
  }
  float* inner = shared_memory<float>();
  const T* x = static_cast<const T*>(args.x) + static_cast<int64_t>(row) * args.x_stride;
  const T* a = static_cast<const T*>(update.a);
  for (int r = warp_index(); r < update.rank; r += kWarps) {
    float sum = 0.0F;
    for (int i = lane_index(); i < args.in; i += kWarp) {
      sum = fmaf(to_float(x[i]), to_float(a[static_cast<int64_t>(r) * args.in + i]), sum);
    }
    sum = warp_sum(sum);
    if (lane_index() == 0) {
      inner[r] = update.scale * sum;
    }
  }
  __syncthreads();
  const T* b = static_cast<const T*>(update.b);
  T* y = static_cast<T*>(args.y) + static_cast<int64_t>(row) * args.y_stride + args.offset[product];
  for (int o = static_cast<int>(threadIdx.x); o < update.out; o += kThreads) {
    float sum = to_float(y[o]);
    for (int r = 0; r < update.rank; ++r) {
      sum = fmaf(inner[r], to_float(b[static_cast<int64_t>(r) * update.out + o]), sum);
    }
    y[o] = from_float<T>(sum);
  }
}

}  // namespace

void lora(const LoraArgs& args, Stream stream) {
  Shape shape = {};
  shape.grid = dim3(static_cast<unsigned>(args.rows), static_cast<unsigned>(args.products));
  shape.block = dim3(kThreads);
  shape.shared_bytes = static_cast<size_t>(args.max_rank) * sizeof(float);
  for_dtype(args.dtype, [&]<typename T>() { launch_early(lora_kernel<T>, shape, stream, args); });
}

}  // namespace dlf::cuda
