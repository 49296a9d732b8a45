#include "ops/cuda/cache_blocks.h"
#include "ops/cuda/vector.h"
#include "support/cuda/launch.h"

namespace dlf::cuda {
namespace {

constexpr int kThreads = 256;
constexpr int kEach = 4;  // units that a thread copies

unsigned blocks_for(int64_t units) {
  return static_cast<unsigned>((units + kEach * kThreads - 1) / (kEach * kThreads));
}

// One thread, since an entry may be changed twice.
__global__ void set_blocks_kernel(TableChanges args) {
  for (int i = 0; i < args.count; ++i) {
    args.table[args.entry[i]] = args.block[i];
  }
}

// A row of thread blocks copies the keys or values of one layer. A unit's copies are all done by one thread.
__global__ void copy_blocks_kernel(BlockCopies args) {
  const int64_t layer = blockIdx.y / 2;
  const int64_t size = args.block_bytes / static_cast<int64_t>(sizeof(uint4));
  uint4* side = static_cast<uint4*>(blockIdx.y % 2 != 0 ? args.values : args.keys) + layer * args.blocks * size;
  const int64_t stride = static_cast<int64_t>(gridDim.x) * kThreads;
  for (int64_t i = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x; i < size; i += stride) {
    for (int copy = 0; copy < args.count; ++copy) {
      side[args.to[copy] * size + i] = side[args.from[copy] * size + i];
    }
  }
}

// A row of thread blocks copies one head.
template <typename Unit>
__global__ void gather_cache_kernel(GatherArgs args) {
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
void launch_gather(const GatherArgs& args, Stream stream) {
  const int64_t units = args.count * static_cast<int64_t>(args.head_bytes) / static_cast<int64_t>(sizeof(Unit));
  const dim3 grid(blocks_for(units), static_cast<unsigned>(args.kv_heads));
  launch(gather_cache_kernel<Unit>, {grid, dim3(kThreads)}, stream, args);
}

}  // namespace

void set_blocks(const TableChanges& args, Stream stream) {
  launch(set_blocks_kernel, {dim3(1), dim3(1)}, stream, args);
}

void copy_blocks(const BlockCopies& args, Stream stream) {
  const int64_t units = args.block_bytes / static_cast<int64_t>(sizeof(uint4));
  const dim3 grid(blocks_for(units), static_cast<unsigned>(2 * args.layers));
  launch(copy_blocks_kernel, {grid, dim3(kThreads)}, stream, args);
}

void gather_cache(const GatherArgs& args, Stream stream) {
  if (args.head_bytes % static_cast<int>(sizeof(uint4)) == 0) {
    launch_gather<uint4>(args, stream);
  } else {
    launch_gather<uint16_t>(args, stream);
  }
}

}  // namespace dlf::cuda
