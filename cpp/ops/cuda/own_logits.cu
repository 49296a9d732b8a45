#include "ops/cuda/linear_quads.h"
#include "ops/cuda/own_logits.h"
#include "support/cuda/launch.h"

namespace dlf::cuda {
namespace {

constexpr int kWarps = 8;  // per block
constexpr int kRows = 8;   // that share one reading of a weight

// A warp computes one logit of all rows of a lane.
template <typename T>
__global__ void own_logits_kernel(OwnLogitsArgs args) {
  await_inputs();
  const int lane = args.adapted.lane >= 0 ? args.adapted.lane : static_cast<int>(blockIdx.y);
  const ops::OwnLogits own = args.own[lane];
  const int channel = static_cast<int>(blockIdx.x) * kWarps + warp_index();
  if (channel >= own.count) {
    return;
  }
  const int step = args.adapted.lane >= 0 ? 1 : args.adapted.lanes;
  const auto* weight = static_cast<const T*>(own.rows) + static_cast<int64_t>(channel) * args.in;
  const auto* x = static_cast<const T*>(args.x);
  const int token = own.token == nullptr ? channel : own.token[channel];
  for (int first = step == 1 ? 0 : lane; first < args.rows; first += kRows * step) {
    bool active[kRows];
    bool any = false;
#pragma unroll
    for (int r = 0; r < kRows; ++r) {
      const int row = first + r * step;
      active[r] = row < args.rows && (args.position == nullptr || args.position[row] >= 0);
      any = any || active[r];
    }
    if (!any) {
      continue;
    }
    float sums[kRows] = {};
#pragma unroll 2
    for (int quad = lane_index(); quad < (args.in + 3) / 4; quad += kWarp) {
      const Quad weights = load_quad(weight, args.in, quad);
#pragma unroll
      for (int r = 0; r < kRows; ++r) {
        if (active[r]) {
          const Quad values = load_quad(x + static_cast<int64_t>(first + r * step) * args.in, args.in, quad);
#pragma unroll
          for (int i = 0; i < 4; ++i) {
            sums[r] = fmaf(weights.at[i], values.at[i], sums[r]);
          }
        }
      }
    }
#pragma unroll
    for (int r = 0; r < kRows; ++r) {
      const float sum = warp_sum(sums[r]);
      if (active[r] && lane_index() == 0) {
        args.y[static_cast<int64_t>(first + r * step) * args.vocab + token] = sum;
      }
    }
  }
}

}  // namespace

void own_logits(const OwnLogitsArgs& args, Stream stream) {
  const auto lanes = static_cast<unsigned>(args.adapted.lane >= 0 ? 1 : args.adapted.lanes);
  const auto blocks = static_cast<unsigned>((args.most + kWarps - 1) / kWarps);
  for_dtype(args.dtype, [&]<typename T>() {
    launch_early(own_logits_kernel<T>, {dim3(blocks, lanes), dim3(kWarps * kWarp)}, stream, args);
  });
}

}  // namespace dlf::cuda
