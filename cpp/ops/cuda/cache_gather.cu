#include "ops/cuda/cache_gather.h"
#include "ops/cuda/vector.h"
#include "support/cuda/launch.h"

namespace dlf::cuda {
namespace {

constexpr int kThreads = 256;
constexpr int kEach = 4;  // units that a thread copies, if all fit the grid

// A row of thread blocks copies one head.
template <typename Unit>
__global__ void gather_cache_kernel(CacheGatherArgs args) {
  const int64_t head = blockIdx.y;
  const int64_t width = args.head_bytes / static_cast<int64_t>(sizeof(Unit));
  const int64_t size = args.count * width;
  const Unit* cache = static_cast<const Unit*>(args.cache);
  Unit* y = static_cast<Unit*>(args.y) + head * args.stride * width;
  const int64_t stride = static_cast<int64_t>(gridDim.x) * kThreads;
  for (int64_t i = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x; i < size; i += stride) {
    const int64_t position = i / width;
    const int64_t row = (args.table.block_of(args.slot, position) * args.kv_heads + head) * ops::kCacheBlock;
    y[i] = cache[(row + position % ops::kCacheBlock) * width + i % width];
  }
}

template <typename Unit>
void launch_gather(const CacheGatherArgs& args, Stream stream) {
  const int64_t units = args.count * static_cast<int64_t>(args.head_bytes) / static_cast<int64_t>(sizeof(Unit));
  const auto blocks = static_cast<unsigned>((units + kEach * kThreads - 1) / (kEach * kThreads));
  launch(gather_cache_kernel<Unit>, {dim3(blocks, static_cast<unsigned>(args.kv_heads)), dim3(kThreads)}, stream, args);
}

}  // namespace

void gather_cache(const CacheGatherArgs& args, Stream stream) {
  if (args.head_bytes % static_cast<int>(sizeof(uint4)) == 0) {
    launch_gather<uint4>(args, stream);
  } else {
    launch_gather<uint16_t>(args, stream);
  }
}

}  // namespace dlf::cuda
