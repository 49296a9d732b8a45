#include "engine/cuda/prompt_lookup.h"
#include "engine/prompt_lookup.h"
#include "support/cuda/launch.h"

namespace dlf::cuda {
namespace {

constexpr int kThreads = 256;

// A block for each sequence; each thread compares a share of its positions.
__global__ void look_up_kernel(LookUpArgs args) {
  const int sequence = static_cast<int>(blockIdx.x);
  const int thread = static_cast<int>(threadIdx.x);
  if (args.active[sequence] == 0) {
    return;
  }
  auto* best = shared_memory<unsigned long long>();  // match length << 32 | its end: the maximum is the last longest
  if (thread == 0) {
    *best = 0;
  }
  __syncthreads();
  const int32_t size = args.sampler.rows[sequence].history_length;
  int32_t* history = args.sampler.history + sequence * args.sampler.history_stride;
  unsigned long long mine = 0;
  for (int32_t end = 1 + thread; end < size; end += kThreads) {
    const int32_t most = min(end, static_cast<int32_t>(PromptLookup::kLongest));
    int32_t length = 0;
    while (length < most && history[end - 1 - length] == history[size - 1 - length]) {
      ++length;
    }
    if (length > 0) {
      mine = max(mine, static_cast<unsigned long long>(length) << 32 | static_cast<uint32_t>(end));
    }
  }
  atomicMax(best, mine);
  __syncthreads();
  const auto end = static_cast<int32_t>(*best & UINT32_MAX);
  for (int32_t i = thread; i < args.count; i += kThreads) {
    const int32_t token = end > 0 && end + i < size ? history[end + i] : -1;
    args.drafts[i * args.sampler.sequences + sequence] = token;
    if (size + i < args.sampler.history_stride) {
      history[size + i] = token;
    }
  }
}

}  // namespace

void look_up(const LookUpArgs& args, Stream stream) {
  Shape shape;
  shape.grid = dim3(static_cast<unsigned>(args.sampler.sequences));
  shape.block = dim3(kThreads);
  shape.shared_bytes = sizeof(unsigned long long);
  launch(look_up_kernel, shape, stream, args);
}

}  // namespace dlf::cuda
