#include "ops/cuda/embedding.h"
#include "ops/cuda/linear_quads.h"
#include "support/cuda/launch.h"

namespace dlf::cuda {
namespace {

constexpr int kThreads = 256;

// A thread writes four values of a row.
template <typename T, typename Weights>
__global__ void embedding_kernel(EmbeddingArgs args) {
  const int quad = static_cast<int>(blockIdx.x * kThreads + threadIdx.x);
  const int64_t size = args.size();
  const int row = static_cast<int>(blockIdx.y);
  const int32_t token = args.token[row / args.lanes];
  const ops::OwnEmbedding own = args.own != nullptr ? args.own[args.adapted.of(row)] : ops::OwnEmbedding{};
  const int32_t own_row = own.row(token);
  const int position = args.positions != nullptr ? args.places.position_of(row) : -1;
  const int64_t first = 4 * static_cast<int64_t>(quad);
  if (first >= size) {
    return;
  }
  Quad values = {};
  if (own_row >= 0) {
    values = load_quad(static_cast<const T*>(own.rows) + own_row * size, size, quad);
  } else if (token >= 0) {
    values = Weights::load(args.weight, token, quad);
  }
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    if (first + i < size) {
      float value = values.at[i] * args.multiplier;
      if (position >= 0) {
        value += to_float(static_cast<const T*>(args.positions)[position * size + first + i]);
      }
      args.y[row * size + first + i] = value;
    }
  }
}

}  // namespace

void embedding(const EmbeddingArgs& args, Stream stream) {
  const auto blocks = static_cast<unsigned>((args.size() + 4 * kThreads - 1) / (4 * kThreads));
  for_dtype(args.dtype, [&]<typename T>() {
    for_quads<T>(args.weight.type, [&]<typename Weights>() {
      launch(embedding_kernel<T, Weights>, {dim3(blocks, static_cast<unsigned>(args.rows)), dim3(kThreads)}, stream,
             args);
    });
  });
}

}  // namespace dlf::cuda
