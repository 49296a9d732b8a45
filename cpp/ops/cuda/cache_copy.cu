#include "ops/cuda/cache_copy.h"
#include "ops/cuda/vector.h"
#include "support/cuda/launch.h"

namespace dlf::cuda {
namespace {

constexpr int kThreads = 256;

// A column of thread blocks copies the keys or values of one head of one layer.
template <typename Unit, bool kSave>
__global__ void cache_copy_kernel(CacheCopyArgs args) {
  const int head = static_cast<int>(blockIdx.y) / 2;  // counted over all layers
  const bool is_value = blockIdx.y % 2 != 0;
  const int64_t width = args.head_bytes / static_cast<int64_t>(sizeof(Unit));
  const int64_t size = args.count * width;
  const int64_t layer = head / args.kv_heads;
  Unit* cache = static_cast<Unit*>(is_value ? args.values : args.keys);
  Unit* piece = static_cast<Unit*>(args.piece) + static_cast<int64_t>(blockIdx.y) * size;
  const int64_t stride = static_cast<int64_t>(gridDim.x) * kThreads;
  for (int64_t i = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x; i < size; i += stride) {
    const int64_t position = args.begin + i / width;
    const int64_t block = layer * args.blocks + args.table.block_of(args.slot, position);
    const int64_t row = (block * args.kv_heads + head % args.kv_heads) * ops::kCacheBlock + position % ops::kCacheBlock;
    Unit& cached = cache[row * width + i % width];
    if constexpr (kSave) {
      piece[i] = cached;
    } else {
      cached = piece[i];
    }
  }
}

template <typename Unit, bool kSave>
void launch_copy(const CacheCopyArgs& args, Stream stream) {
  const int64_t units = args.count * static_cast<int64_t>(args.head_bytes) / static_cast<int64_t>(sizeof(Unit));
  const auto blocks = static_cast<unsigned>((units + 4 * kThreads - 1) / (4 * kThreads));
  const auto heads = static_cast<unsigned>(2 * args.layers * args.kv_heads);
  launch(cache_copy_kernel<Unit, kSave>, {dim3(blocks, heads), dim3(kThreads)}, stream, args);
}

template <bool kSave>
void copy(const CacheCopyArgs& args, Stream stream) {
  if (args.head_bytes % static_cast<int>(sizeof(uint4)) == 0) {
    launch_copy<uint4, kSave>(args, stream);
  } else {
    launch_copy<uint16_t, kSave>(args, stream);
  }
}

}  // namespace

void save_cache(const CacheCopyArgs& args, Stream stream) { copy<true>(args, stream); }
void restore_cache(const CacheCopyArgs& args, Stream stream) { copy<false>(args, stream); }

}  // namespace dlf::cuda
