#include <algorithm>

#include "ops/cuda/shards.h"
#include "support/cuda/launch.h"

namespace dlf::cuda {
namespace {

constexpr int kThreads = 256;
constexpr int64_t kMostBlocks = 4096;

unsigned blocks_for(int64_t elements) {
  return static_cast<unsigned>(std::clamp<int64_t>((elements + kThreads - 1) / kThreads, 1, kMostBlocks));
}

template <typename Y>
__global__ void sum_parts_kernel(SumPartsArgs args) {
  const auto step = static_cast<int64_t>(gridDim.x) * kThreads;
  for (int64_t i = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x; i < args.size; i += step) {
    float sum = args.parts[0][i];
    for (int part = 1; part < args.count; ++part) {
      sum += args.parts[part][i];
    }
    static_cast<Y*>(args.y)[i] = from_float<Y>(sum);
  }
}

__global__ void join_columns_kernel(JoinColumnsArgs args) {
  const auto row = static_cast<int64_t>(blockIdx.y);
  if (args.positions != nullptr && args.positions[row] < 0) {
    return;
  }
  const auto step = static_cast<int64_t>(gridDim.x) * kThreads;
  float* y = args.y + row * args.first[args.count];
  for (int part = 0; part < args.count; ++part) {
    const int64_t first = args.first[part];
    const int64_t columns = args.first[part + 1] - first;
    const float* x = args.parts[part] + row * columns;
    for (int64_t i = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x; i < columns; i += step) {
      y[first + i] = x[i];
    }
  }
}

__global__ void own_tokens_kernel(OwnTokensArgs args) {
  const int i = static_cast<int>(blockIdx.x * kThreads + threadIdx.x);
  if (i < args.count) {
    const int32_t token = args.from[i] - args.first;
    args.to[i] = token >= 0 && token < args.size ? token : -1;
  }
}

}  // namespace

// These follow copies and waits, after which no kernel may start early.
void sum_parts(const SumPartsArgs& args, Stream stream) {
  for_dtype(args.y_float ? DType::float32 : args.dtype, [&]<typename Y>() {
    launch(sum_parts_kernel<Y>, {dim3(blocks_for(args.size)), dim3(kThreads)}, stream, args);
  });
}

void join_columns(const JoinColumnsArgs& args, Stream stream) {
  const dim3 grid(blocks_for(args.first[args.count] / args.count), static_cast<unsigned>(args.rows));
  launch(join_columns_kernel, {grid, dim3(kThreads)}, stream, args);
}

void own_tokens(const OwnTokensArgs& args, Stream stream) {
  launch(own_tokens_kernel, {dim3(blocks_for(args.count)), dim3(kThreads)}, stream, args);
}

}  // namespace dlf::cuda
