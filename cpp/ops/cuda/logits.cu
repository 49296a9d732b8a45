#include "ops/cuda/logits.h"
#include "support/cuda/launch.h"

namespace dlf::cuda {
namespace {

using ops::LogitArgs;

constexpr int kThreads = 256;

__global__ void logits_kernel(LogitArgs args) {
  await_inputs();
  const int i = static_cast<int>(blockIdx.x * kThreads + threadIdx.x);
  if (i >= args.size) {
    return;
  }
  float& y = args.y[static_cast<int64_t>(blockIdx.y) * args.size + i];
  const float value = y * args.multiplier;
  y = args.softcap > 0.0F ? args.softcap * tanhf(value / args.softcap) : value;
}

}  // namespace

void finish_logits(const LogitArgs& args, Stream stream) {
  const auto blocks = static_cast<unsigned>((args.size + kThreads - 1) / kThreads);
  launch_early(logits_kernel, {dim3(blocks, static_cast<unsigned>(args.rows)), dim3(kThreads)}, stream, args);
}

}  // namespace dlf::cuda
