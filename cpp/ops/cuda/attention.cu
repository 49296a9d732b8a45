#include <stdexcept>
#include <string>

#include "ops/cuda/attention.h"
#include "ops/cuda/attention_warp.h"
#include "support/cuda/cluster.h"

// A context is cut into kGroups * kMembers streams of neighbouring positions. A warp takes a stream; the results of a
// group's members are merged one after the other, and then those of the groups. One block does all of it, one group per
// warp; or a cluster of kGroups blocks does, one member per warp. Both add in the same order, so the result depends
// neither on the number of blocks nor on the other rows.
namespace dlf::cuda {
namespace {

constexpr int kGroups = 8;
constexpr int kMembers = 8;  // also the warps of a block: kGroups == kMembers
constexpr int kThreads = kMembers * kWarp;
constexpr int kMaxHeads = 4;  // most query heads that read the cache together
constexpr int kMaxHeadDim = kElements * kWarp;

template <typename T, int H, int Lanes, bool Vectors, bool Capped>
__global__ void __launch_bounds__(kThreads, H == 1 && Vectors ? 3 : 2)
    attention_kernel(AttentionArgs args, int splits) {
  await_inputs();
  using Layout = Parts<H, Lanes>;
  const int share = args.heads / args.kv_heads;  // query heads of a key-value head
  const int head_groups = (share + H - 1) / H;
  const int kv_head = static_cast<int>(blockIdx.y) / head_groups;
  const int first = static_cast<int>(blockIdx.y) % head_groups * H;
  const int heads = min(H, share - first);
  const int first_head = kv_head * share + first;
  const int row = static_cast<int>(blockIdx.z);
  const int position = args.places.position_of(row);
  const int thread = static_cast<int>(threadIdx.x);
  const bool split = splits > 1;
  const int block = split ? static_cast<int>(blockIdx.x) : 0;  // of the cluster
  T* y = static_cast<T*>(args.y) + (static_cast<int64_t>(row) * args.heads + first_head) * args.head_dim;
  if (position < 0) {
    for (int i = thread; block == 0 && i < heads * args.head_dim; i += kThreads) {
      y[i] = from_float<T>(0.0F);
    }
    return;  // the whole cluster
  }

  const AttentionWarp<T, H, Lanes, Vectors, Capped> attention(args, row, kv_head, first_head, heads, position + 1);
  constexpr int kStreams = kGroups * kMembers;
  const int tiles = attention.tiles();
  const int stream_tiles = (tiles + kStreams - 1) / kStreams;
  const int warp = thread / kWarp;
  const int group = split ? block : warp;
  const int members = split ? warp + 1 : kMembers;
  float* warps = shared_memory<float>();            // [kMembers, H, kStride]
  float* whole = warps + kMembers * Layout::kSize;  // [H, kStride]: this block's result
  float* mine = warps + warp * Layout::kSize;
  attention.clear(mine);
  for (int member = split ? warp : 0; member < members; ++member) {
    const int begin = (member * kGroups + group) * stream_tiles;  // the first streams belong to different groups
    if (begin < tiles) {
      State states[H];
      attention.add(begin, min(begin + stream_tiles, tiles), states);
      attention.gather(states);
      attention.merge_into(mine, states);
    }
  }
  __syncthreads();
  const auto write = [&](int head, int i, const Merged& merged) {
    const int element = Layout::element(i);
    if (head < heads && element < args.head_dim) {
      y[head * args.head_dim + element] = from_float<T>(merged.sum / merged.softmax.total);
    }
  };
  for (int item = thread; item < H * Layout::kDim; item += kThreads) {
    const int head = item / Layout::kDim;
    const int i = item % Layout::kDim;
    Merged merged;
    for (int part = 0; part < kMembers; ++part) {
      merged.add(warps + part * Layout::kSize + head * Layout::kStride, Layout::kDim, i);
    }
    if (!split) {
      write(head, i, merged);
      continue;
    }
    float* to = whole + head * Layout::kStride;
    to[i] = merged.sum;
    if (i == 0) {
      to[Layout::kDim] = merged.softmax.maximum;
      to[Layout::kDim + 1] = merged.softmax.total;
    }
  }
  if (!split) {
    return;
  }
  const Cluster cluster;
  cluster.sync();
  const int item = block * kThreads + thread;  // each block writes a share
  if (item < H * Layout::kDim) {
    const int head = item / Layout::kDim;
    const int i = item % Layout::kDim;
    Merged merged;
    for (int part = 0; part < kGroups; ++part) {
      merged.add(cluster.of(whole, part) + head * Layout::kStride, Layout::kDim, i);
    }
    write(head, i, merged);
  }
  cluster.sync();  // no block exits while others read its memory
}

template <typename T, int H, int Lanes, bool Vectors, bool Capped>
void start(const AttentionArgs& args, int splits, Stream stream) {
  using Layout = Parts<H, Lanes>;
  static_assert(H * Layout::kDim <= kGroups * kThreads);
  const int head_groups = (args.heads / args.kv_heads + H - 1) / H;
  const auto blocks = static_cast<unsigned>(splits);
  const dim3 grid(blocks, static_cast<unsigned>(args.kv_heads * head_groups), static_cast<unsigned>(args.places.rows));
  launch_early(attention_kernel<T, H, Lanes, Vectors, Capped>,
               {grid, dim3(kThreads), sizeof(float) * (kMembers + 1) * Layout::kSize, blocks}, stream, args, splits);
}

template <typename T, int Lanes>
void start_vectors(const AttentionArgs& args, int splits, Stream stream) {
  if (args.softcap > 0.0F) {
    return start<T, kMaxHeads, Lanes, true, true>(args, splits, stream);
  }
  args.heads == args.kv_heads ? start<T, 1, Lanes, true, false>(args, splits, stream)
                              : start<T, kMaxHeads, Lanes, true, false>(args, splits, stream);
}

// Kernels for usual models have vectors, and heads of up to 64, 128 or 256; one more serves all others, and float32.
template <typename T>
void start(const AttentionArgs& args, int splits, Stream stream) {
  if constexpr (sizeof(T) == 2) {
    if (args.head_dim % kElements == 0) {
      return args.head_dim <= 8 * kElements    ? start_vectors<T, 8>(args, splits, stream)
             : args.head_dim <= 16 * kElements ? start_vectors<T, 16>(args, splits, stream)
                                               : start_vectors<T, kWarp>(args, splits, stream);
    }
  }
  args.softcap > 0.0F ? start<T, 1, kWarp, false, true>(args, splits, stream)
                      : start<T, 1, kWarp, false, false>(args, splits, stream);
}

}  // namespace

int attention_splits(int rows, int kv_heads, int capacity, int multiprocessors, int compute_capability) {
  constexpr int kShort = 128;  // positions that one block reads as fast as a cluster
  constexpr int kClusters = 90;
  const bool fills = rows * kv_heads >= 2 * multiprocessors;
  return fills || capacity <= kShort || compute_capability < kClusters ? 1 : kGroups;
}

void attention(const AttentionArgs& args, int splits, Stream stream) {
  if (args.head_dim > kMaxHeadDim || args.head_dim % 2 != 0 || args.heads % args.kv_heads != 0 ||
      (splits != 1 && splits != kGroups)) {
    throw std::invalid_argument("attention: head_dim is " + std::to_string(args.head_dim) + " and splits " +
                                std::to_string(splits) + "; head_dim must be even and at most " +
                                std::to_string(kMaxHeadDim) + ", kv_heads must divide heads, and splits be 1 or " +
                                std::to_string(kGroups));
  }
  for_dtype(args.dtype, [&]<typename T>() { start<T>(args, splits, stream); });
}

}  // namespace dlf::cuda
