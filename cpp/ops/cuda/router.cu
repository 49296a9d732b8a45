#include "ops/cuda/router.h"
#include "ops/cuda/vector.h"
#include "support/cuda/launch.h"

namespace dlf::cuda {
namespace {

using ops::ExpertRun;
using ops::kMostExperts;
using ops::RouterArgs;

constexpr int kChooseWarps = 4;  // per block
constexpr int kSortWarps = 32;

__device__ uint64_t warp_max(uint64_t value) {
  for (int offset = kWarp / 2; offset > 0; offset /= 2) {
    const uint64_t high = __shfl_xor_sync(kAllLanes, static_cast<uint32_t>(value >> 32), offset);
    const uint64_t low = __shfl_xor_sync(kAllLanes, static_cast<uint32_t>(value), offset);
    const uint64_t other = high << 32 | low;
    value = other > value ? other : value;
  }
  return value;
}

// Sum over the lanes before this one.
__device__ int32_t sum_before(int32_t value) {
  int32_t sum = value;
  for (int offset = 1; offset < kWarp; offset *= 2) {
    const int32_t other = __shfl_up_sync(kAllLanes, sum, offset);
    sum += lane_index() >= offset ? other : 0;
  }
  return sum - value;
}

// A warp chooses the experts of a row. Lane l owns the experts l, l + 32, ...
__global__ void choose_kernel(RouterArgs args) {
  const int row = static_cast<int>(blockIdx.x) * kChooseWarps + warp_index();
  const bool active = row < args.rows && (args.position == nullptr || args.position[row] >= 0);
  await_inputs();
  if (row >= args.rows) {
    return;
  }
  const int lane = lane_index();
  const float* logits = args.logits + static_cast<int64_t>(row) * args.experts;
  int32_t* expert = args.routes.expert + static_cast<int64_t>(row) * args.chosen;
  float* weight = args.routes.weight + static_cast<int64_t>(row) * args.chosen;
  if (!active) {
    for (int k = lane; k < args.chosen; k += kWarp) {
      expert[k] = -1;
    }
    return;
  }
  static_assert(kMostExperts <= kWarp * 32, "a lane marks its experts in 32 bits");
  uint32_t taken = 0;
  float largest = 0.0F;
  float chosen_sum = 0.0F;
  for (int k = 0; k < args.chosen; ++k) {
    uint64_t best = 0;
    for (int e = lane, bit = 0; e < args.experts; e += kWarp, ++bit) {
      const uint64_t key = ops::router_key(logits[e], e);
      if ((taken >> bit & 1) == 0 && key > best) {
        best = key;
      }
    }
    const int found = ops::expert_of_key(warp_max(best));
    taken |= found % kWarp == lane ? 1U << (found / kWarp) : 0U;
    largest = k == 0 ? logits[found] : largest;
    const float part = expf(logits[found] - largest);
    chosen_sum += part;
    if (lane == 0) {
      expert[k] = found;
      weight[k] = part;
    }
  }
  float total = chosen_sum;
  if (!args.normalise) {
    float sum = 0.0F;
    for (int e = lane; e < args.experts; e += kWarp) {
      sum += expf(logits[e] - largest);
    }
    total = warp_sum(sum);
  }
  __syncwarp();
  for (int k = lane; k < args.chosen; k += kWarp) {
    weight[k] /= total;
  }
}

// The one block sorts all pairs: a warp counts the pairs of an expert, then places them.
__global__ void __launch_bounds__(kSortWarps* kWarp, 1) sort_kernel(RouterArgs args) {
  int32_t* first = shared_memory<int32_t>();  // [kMostExperts]: pairs of each expert, then the place of the first
  int32_t* first_run = first + kMostExperts;  // [kMostExperts]
  await_inputs();
  const ops::Routes& routes = args.routes;
  const int lane = lane_index();
  const int pairs = args.rows * args.chosen;
  const auto mine = [&](int i, int expert) {
    return __ballot_sync(kAllLanes, i + lane < pairs && routes.expert[i + lane] == expert);
  };
  for (int e = warp_index(); e < args.experts; e += kSortWarps) {
    int count = 0;
    for (int i = 0; i < pairs; i += kWarp) {
      count += __popc(mine(i, e));
    }
    if (lane == 0) {
      first[e] = count;
    }
  }
  __syncthreads();
  if (warp_index() == 0) {
    int32_t place = 0;
    int32_t run = 0;
    for (int begin = 0; begin < args.experts; begin += kWarp) {
      const int e = begin + lane;
      const int32_t count = e < args.experts ? first[e] : 0;
      const int32_t runs = (count + args.run_pairs - 1) / args.run_pairs;
      const int32_t places_before = place + sum_before(count);
      const int32_t runs_before = run + sum_before(runs);
      if (e < args.experts) {
        first[e] = places_before;
        first_run[e] = runs_before;
      }
      place = __shfl_sync(kAllLanes, places_before + count, kWarp - 1);
      run = __shfl_sync(kAllLanes, runs_before + runs, kWarp - 1);
    }
    if (lane == 0) {
      *routes.run_count = run;
    }
  }
  __syncthreads();
  for (int e = warp_index(); e < args.experts; e += kSortWarps) {
    int32_t place = first[e];
    for (int i = 0; i < pairs; i += kWarp) {
      const uint32_t lanes = mine(i, e);
      if ((lanes >> lane & 1) != 0) {
        const int32_t own = place + __popc(lanes & ((1U << lane) - 1));
        routes.place[i + lane] = own;
        routes.row[own] = (i + lane) / args.chosen;
      }
      place += __popc(lanes);
    }
    const int32_t count = place - first[e];
    for (int32_t run = lane; run * args.run_pairs < count; run += kWarp) {
      const int32_t begin = run * args.run_pairs;
      routes.runs[first_run[e] + run] = {e, first[e] + begin, min(args.run_pairs, count - begin)};
    }
  }
}

}  // namespace

void router(const RouterArgs& args, Stream stream) {
  const auto blocks = static_cast<unsigned>((args.rows + kChooseWarps - 1) / kChooseWarps);
  launch_early(choose_kernel, {dim3(blocks), dim3(kChooseWarps * kWarp)}, stream, args);
  launch_early(sort_kernel, {dim3(1), dim3(kSortWarps * kWarp), sizeof(int32_t) * 2 * kMostExperts}, stream, args);
}

}  // namespace dlf::cuda
