#include "engine/cuda/gather_logits.h"
#include "engine/token_map.h"
#include "support/cuda/launch.h"

namespace dlf::cuda {
namespace {

constexpr int64_t kThreads = 256;
constexpr int64_t kPerBlock = 8 * kThreads;

__global__ void gather_logits_kernel(GatherLogitsArgs args) {
  const auto row = static_cast<int64_t>(blockIdx.y);
  if (args.positions != nullptr && args.positions[row] < 0) {
    return;
  }
  const float* from = args.from + row * args.model_vocab;
  float* to = args.to + row * args.vocab;
  const auto stride = static_cast<int64_t>(gridDim.x * blockDim.x);
  for (int64_t i = blockIdx.x * blockDim.x + threadIdx.x; i < args.vocab; i += stride) {
    const int32_t id = args.read[i];
    to[i] = id < 0 ? kNoLogit : from[id];
  }
}

}  // namespace

void gather_logits(const GatherLogitsArgs& args, Stream stream) {
  const dim3 grid(static_cast<unsigned>((args.vocab + kPerBlock - 1) / kPerBlock), static_cast<unsigned>(args.rows));
  launch(gather_logits_kernel, {grid, dim3(kThreads)}, stream, args);
}

}  // namespace dlf::cuda
