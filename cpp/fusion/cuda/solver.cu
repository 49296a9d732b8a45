#include <algorithm>
#include <map>
#include <mutex>

#include "fusion/cuda/row_finish.h"
#include "fusion/cuda/row_first.h"
#include "fusion/cuda/row_joint.h"
#include "fusion/cuda/row_read.h"
#include "fusion/cuda/row_search.h"
#include "fusion/cuda/row_tokens.h"
#include "fusion/cuda/row_wide.h"
#include "fusion/cuda/solver.h"

namespace dlf::cuda {
namespace {

// Whether a kernel of this kind solves the rows of `kernels`. A single expert is searched, whatever the rule.
template <SolverKind kKind>
__device__ bool solves(uint32_t kernels) {
  return kKind == SolverKind::one || (kernels & (kKind == SolverKind::joint ? kJointKernel : kSearchKernel)) != 0;
}

template <SolverKind kKind, bool kHeld>
__global__ void __launch_bounds__(kSolverThreads, 1)
    solve_rows(const __grid_constant__ FusionArgs args, const __grid_constant__ SolverLayout layout) {
  const int row = static_cast<int>(blockIdx.x) / Cluster().blocks;
  const RowRule& rule = args.rules[row % args.rule_count];
  const int32_t active = args.active != nullptr ? args.active[row] : 1;
  if (active == 0 || !solves<kKind>(rule.kernels)) {
    return;
  }
  if ((rule.kernels & (kGateKernel | kPrepareKernel)) != 0 && args.records[row].closed != 0) {
    return;
  }
  RowSolver<kKind, kHeld> solver(args, rule, layout, shared_memory<unsigned char>());
  solver.solve();
}

// Properties of a device that the launcher needs.
struct Card {
  int shared_bytes;  // most for a block
  bool has_clusters;
};

int attribute(cudaDeviceAttr which, int device) {
  int value = 0;
  check(cudaDeviceGetAttribute(&value, which, device), "asking for what the device can do");
  return value;
}

Card card() {
  static std::mutex mutex;
  static std::map<int, Card> cards;
  int device = 0;
  check(cudaGetDevice(&device), "asking for the device");
  const std::lock_guard lock(mutex);
  const auto found = cards.find(device);
  if (found != cards.end()) {
    return found->second;
  }
  const Card card = {attribute(cudaDevAttrMaxSharedMemoryPerBlockOptin, device),
                     attribute(cudaDevAttrComputeCapabilityMajor, device) >= 9};
  return cards.emplace(device, card).first->second;
}

bool aligned(const Logits& logits) {
  return reinterpret_cast<uintptr_t>(logits.data) % sizeof(Four) == 0 && logits.stride % 4 == 0;
}

SolverLayout layout_of(const FusionArgs& args, const FusionShape& shape, bool is_joint) {
  SolverLayout layout = {};
  layout.groups = static_cast<int>(((args.vocab + 3) / 4 + shape.cluster - 1) / shape.cluster);
  layout.aligned = aligned(args.large) && aligned({args.fused, args.fused_stride});
  for (int t = 0; t < args.expert_count; ++t) {
    layout.aligned = layout.aligned && aligned(args.experts[t]) && aligned(args.bases[t]);
    int same = 0;
    while (args.bases[same].data != args.bases[t].data || args.bases[same].stride != args.bases[t].stride) {
      ++same;
    }
    layout.base_slot[t] = same < t ? layout.base_slot[same] : layout.bases++;
  }
  layout.logits_at = SharedPlan(args.expert_count, is_joint).logits;
  const int64_t array = static_cast<int64_t>(layout.groups) * sizeof(Four);
  const int64_t fit = std::max<int64_t>(shape.shared_bytes - layout.logits_at, 0) / array;
  layout.resident = static_cast<int>(std::min<int64_t>(fit, 1 + args.expert_count + layout.bases));
  return layout;
}

template <SolverKind kKind>
void launch_kind(const FusionArgs& args, const FusionShape& shape, Stream stream) {
  const SolverLayout layout = layout_of(args, shape, kKind == SolverKind::joint);
  const bool all_held = layout.resident == 1 + args.expert_count + layout.bases;
  Shape launched = {};
  launched.grid = dim3(static_cast<unsigned>(args.rows * shape.cluster));
  launched.block = dim3(kSolverThreads);
  launched.shared_bytes = layout.logits_at + layout.resident * static_cast<size_t>(layout.groups) * sizeof(Four);
  launched.cluster = static_cast<unsigned>(shape.cluster);
  launch(all_held ? &solve_rows<kKind, true> : &solve_rows<kKind, false>, launched, stream, args, layout);
}

}  // namespace

FusionShape fusion_shape(int64_t vocab) {
  // Sums are added block by block, so the vocabulary alone decides how many blocks there are: a row's result depends
  // neither on the other rows nor on experts that it doesn't use.
  constexpr int kMostBlocks = 8;  // every card with clusters runs this many
  const int64_t groups = (vocab + 3) / 4;
  int cluster = 1;
  while (card().has_clusters && cluster < kMostBlocks && groups > int64_t{cluster} * kSolverThreads) {
    cluster *= 2;
  }
  return {cluster, card().shared_bytes};
}

void solve(const FusionArgs& args, const FusionShape& shape, Stream stream) {
  const bool is_one = args.expert_count == 1;
  if ((args.kernels & kGateKernel) != 0) {
    gate_rows(args, shape.cluster, stream);
  }
  if ((args.kernels & kPrepareKernel) != 0) {
    prepare_rows(args, shape.cluster, stream);
  }
  if (is_one) {
    launch_kind<SolverKind::one>(args, shape, stream);
  }
  if (!is_one && (args.kernels & kSearchKernel) != 0) {
    launch_kind<SolverKind::some>(args, shape, stream);
  }
  if (!is_one && (args.kernels & kJointKernel) != 0) {
    launch_kind<SolverKind::joint>(args, shape, stream);
  }
  if ((args.kernels & kMixKernel) != 0) {
    mix_rows(args, shape.cluster, stream);
  }
}

void close_gates(const FusionArgs& args, Stream stream) { gate_rows(args, fusion_shape(args.vocab).cluster, stream); }

void solve(const FusionArgs& args, Stream stream) { solve(args, fusion_shape(args.vocab), stream); }

}  // namespace dlf::cuda
