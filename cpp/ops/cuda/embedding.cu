#include "ops/cuda/embedding.h"
#include "support/cuda/launch.h"

namespace dlf::cuda {
namespace {

constexpr int kThreads = 256;

template <typename T>
__global__ void embedding_kernel(EmbeddingArgs args) {
  const int i = static_cast<int>(blockIdx.x * kThreads + threadIdx.x);
  if (i >= args.size) {
    return;
  }
  const int row = static_cast<int>(blockIdx.y);
  const int32_t token = args.token[row / args.lanes];
  const ops::OwnEmbedding own = args.own != nullptr ? args.own[args.adapted.of(row)] : ops::OwnEmbedding{};
  const int32_t own_row = own.row(token);
  const T* weight = static_cast<const T*>(own_row < 0 ? args.weight : own.rows);
  const auto weight_row = static_cast<int64_t>(own_row < 0 ? token : own_row);
  float value = token < 0 ? 0.0F : to_float(weight[weight_row * args.size + i]) * args.multiplier;
  const int position = args.positions != nullptr ? args.places.position_of(row) : -1;
  if (position >= 0) {
    value += to_float(static_cast<const T*>(args.positions)[static_cast<int64_t>(position) * args.size + i]);
  }
  args.y[static_cast<int64_t>(row) * args.size + i] = value;
}

}  // namespace

void embedding(const EmbeddingArgs& args, Stream stream) {
  const auto blocks = static_cast<unsigned>((args.size + kThreads - 1) / kThreads);
  for_dtype(args.dtype, [&]<typename T>() {
    launch(embedding_kernel<T>, {dim3(blocks, static_cast<unsigned>(args.rows)), dim3(kThreads)}, stream, args);
  });
}

}  // namespace dlf::cuda
