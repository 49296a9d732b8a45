#pragma once

#include "fusion/cuda/float_math.h"
#include "fusion/cuda/reduce.h"
#include "fusion/cuda/solver.h"

// What the kernels before and after the solver share: sweeps over a row's tokens, one number a thread at a time.
namespace dlf::cuda {

// At first, for rows with kGateKernel: decides whether their gates are open.
void gate_rows(const FusionArgs& args, int cluster, Stream stream);

// Before the solver, for rows with kPrepareKernel: decides gates that read experts, copies the large model's logits
// with their coefficient to where the fused ones will go, measures weights and finds how certainty scales targets.
void prepare_rows(const FusionArgs& args, int cluster, Stream stream);

// After the solver, for rows with kMixKernel: mixes probabilities in and masks tokens.
void mix_rows(const FusionArgs& args, int cluster, Stream stream);

// The tokens of a row, shared out among the threads of a cluster. A thread meets the same tokens in every sweep, so it
// may read what it wrote. All threads of the row call a function together, and get the same results.
class RowTokens {
 public:
  struct Memory {
    float warps[kSolverWarps];
    float blocks[2];  // two exchanges take turns
  };

  __device__ RowTokens(const FusionArgs& args, Memory& memory)
      : memory_(memory), row_(static_cast<int>(blockIdx.x) / cluster_.blocks), vocab_(args.vocab) {}

  __device__ int row() const { return row_; }
  // Whether this thread writes what the row has once.
  __device__ bool is_first() const { return cluster_.rank == 0 && threadIdx.x == 0; }
  __device__ const float* of(const Logits& logits) const { return logits.data + row_ * logits.stride; }

  // Calls body(token) for every token of this thread.
  template <typename Body>
  __device__ void for_each(Body&& body) const {
    const int64_t step = int64_t{cluster_.blocks} * kSolverThreads;
    for (int64_t i = cluster_.rank * kSolverThreads + static_cast<int>(threadIdx.x); i < vocab_; i += step) {
      body(i);
    }
  }

  __device__ float sum(float mine) {
    return join(mine, [](float x, float y) { return x + y; });
  }
  __device__ float largest(float mine) {
    return join(mine, [](float x, float y) { return fmaxf(x, y); });
  }
  __device__ int smallest(int mine) {
    return join(mine, [](int x, int y) { return min(x, y); });
  }

  // The largest logit, and log Σ e^logit; −inf if all are, NaN if one is NaN or +inf.
  struct LogSum {
    float peak;
    float value;
  };
  template <typename Logit>
  __device__ LogSum log_sum(Logit&& logit) {
    float peak = -kInfinity;  // of this thread
    float total = 0.0F;       // relative to it
    for_each([&](int64_t i) {
      const float x = logit(i);
      if (x > peak) {
        total *= weight_of(peak, x);
        peak = x;
      }
      total += x == -kInfinity ? 0.0F : weight_of(x, peak);
    });
    const float most = largest(peak);
    return {most, most + logf(sum(total * weight_of(peak, finite_peak(most))))};
  }

  // The entropy of softmax(logit) in nats; NaN if a logit is NaN or +inf, or if all are −inf. It keeps its digits where
  // one probability is near 1, since two of these are divided: `rest` leaves one token at the peak out.
  template <typename Logit>
  __device__ float entropy(Logit&& logit) {
    float most = -kInfinity;
    for_each([&](int64_t i) { most = fmaxf(most, logit(i)); });
    const float peak = largest(most);
    float level = 0.0F;  // tokens at the peak
    float others = 0.0F;
    float below = 0.0F;
    for_each([&](int64_t i) {
      const float x = logit(i);
      const float apart = peak - x;
      if (apart == 0.0F) {
        level += 1.0F;
      } else if (x != -kInfinity) {
        const float weight = weight_of(x, peak);
        others += weight;
        below = fmaf(weight, fminf(apart, kLargest), below);
      }
    });
    const float rest = sum(level) - 1.0F + sum(others);
    return log1pf(rest) + sum(below) / (1.0F + rest);
  }

  // Waits until no other block reads this one's memory.
  __device__ void leave() const { cluster_.sync(); }

 private:
  // Combines a number of every thread, always in the same order.
  template <typename T, typename Join>
  __device__ T join(T mine, Join&& combined) {
    static_assert(sizeof(T) == sizeof(float));
    const auto join_lanes = [&](T x) {
#pragma unroll
      for (int distance = kWarp / 2; distance > 0; distance /= 2) {
        x = combined(x, __shfl_xor_sync(kAllLanes, x, distance));
      }
      return x;
    };
    T* warps = reinterpret_cast<T*>(memory_.warps);
    T* block = reinterpret_cast<T*>(memory_.blocks) + turn_++ % 2;
    mine = join_lanes(mine);
    if (lane_index() == 0) {
      warps[warp_index()] = mine;
    }
    __syncthreads();
    if (threadIdx.x == 0) {
      T total = warps[0];
      for (int warp = 1; warp < kSolverWarps; ++warp) {
        total = combined(total, warps[warp]);
      }
      *block = total;
    }
    cluster_.sync();
    T total = *cluster_.of(block, 0);
    for (int other = 1; other < cluster_.blocks; ++other) {
      total = combined(total, *cluster_.of(block, other));
    }
    return total;
  }

  const Cluster cluster_;
  Memory& memory_;
  int row_;
  int64_t vocab_;
  int turn_ = 0;
};

// The rule of a row that `kernel` works on; null for other rows.
__device__ inline const RowRule* rule_for(const FusionArgs& args, int row, SolverKernel kernel) {
  const RowRule& rule = args.rules[row % args.rule_count];
  const bool is_active = args.active == nullptr || args.active[row] != 0;
  return is_active && (rule.kernels & kernel) != 0 ? &rule : nullptr;
}

// Clears the record of a row. If its gate is closed, the fused logits are the large model's.
__device__ inline void begin_record(const RowTokens& tokens, const FusionArgs& args, bool closed) {
  if (tokens.is_first()) {
    FusionRecord& record = args.records[tokens.row()];
    record = {};
    record.bad_model = kNoBadModel;
    record.closed = closed ? 1 : 0;
  }
  const float* large = tokens.of(args.large);
  float* fused = args.fused + tokens.row() * args.fused_stride;
  if (closed) {
    tokens.for_each([&](int64_t i) { fused[i] = large[i]; });
  }
}

// A logit of the large model times its coefficient. A finite logit stays finite.
__device__ inline float scaled(float logit, float weight) {
  return fabsf(logit) < kInfinity ? fminf(fmaxf(logit * weight, -kLargest), kLargest) : logit;
}

// Launches a kernel with a cluster for each row.
inline void launch_rows(void (*kernel)(FusionArgs), const FusionArgs& args, int cluster, size_t memory, Stream stream) {
  Shape shape = {};
  shape.grid = dim3(static_cast<unsigned>(args.rows * cluster));
  shape.block = dim3(kSolverThreads);
  shape.shared_bytes = memory;
  shape.cluster = static_cast<unsigned>(cluster);
  launch(kernel, shape, stream, args);
}

}  // namespace dlf::cuda
