#include <algorithm>
#include <type_traits>

#include "ops/cuda/experts.h"
#include "ops/cuda/gated.h"
#include "ops/cuda/linear_any_weights.h"
#include "ops/cuda/linear_quads.h"
#include "support/cuda/launch.h"

namespace dlf::cuda {
namespace {

using ops::ExpertRun;
using ops::kTileOutputs;

constexpr int kGroupRows = 8;     // that the tensor cores take at once
constexpr int kPromptGroups = 4;  // of a run of a prompt
constexpr int kWarps = 8;         // per block
constexpr int kMixThreads = 256;

// The two products of an expert: `gated` multiplies rows of x by gate and up, and applies the activation; the other
// multiplies pairs by down.
template <typename T, bool Gated>
struct Product {
  ExpertsArgs args;

  __device__ const Matrix& matrix(int expert, int index) const {
    const ops::Expert& one = args.experts[expert];
    return Gated ? (index == 0 ? one.gate : one.up) : one.down;
  }
  __device__ const T* input(int pair) const {
    return Gated ? static_cast<const T*>(args.x) + static_cast<int64_t>(args.routes.row[pair]) * args.hidden
                 : static_cast<const T*>(args.gated) + static_cast<int64_t>(pair) * args.inner;
  }
  __device__ int in() const { return Gated ? args.hidden : args.inner; }
  __device__ int out() const { return Gated ? args.inner : args.hidden; }
  // The update of one of the products, for a row.
  __device__ ops::LoraUpdate update(int row, int expert, int index) const {
    const ExpertUpdates& all = args.adapters;
    return all.updates[(all.adapted.of(row) * all.experts + expert) * kExpertUpdates + (Gated ? index : 2)];
  }
  __device__ float* inner(int pair, int index) const {
    return args.adapters.inner + (static_cast<int64_t>(pair) * 2 + index) * args.adapters.max_rank;
  }
  __device__ float updated(int pair, int expert, int channel, int index, float value) const {
    const ops::LoraUpdate own = update(args.routes.row[pair], expert, index);
    for (int r = 0; r < own.rank; ++r) {
      const T factor = static_cast<const T*>(own.b)[static_cast<int64_t>(r) * own.out + channel];
      value = fmaf(inner(pair, index)[r], to_float(factor), value);
    }
    return value;
  }
  // `up` is read if Gated alone.
  __device__ void write(int pair, int expert, int channel, float value, float up) const {
    if (args.adapters.updates != nullptr) {
      value = updated(pair, expert, channel, 0, value);
      up = Gated ? updated(pair, expert, channel, 1, up) : up;
    }
    if constexpr (Gated) {
      static_cast<T*>(args.gated)[static_cast<int64_t>(pair) * args.inner + channel] =
          from_float<T>(gated_of(args.activation, value, up));
    } else {
      args.products[static_cast<int64_t>(pair) * args.hidden + channel] = value;
    }
  }
};

// A block computes x A^T of the updates of one pair's products; its warps take an element each.
template <typename T, bool Gated>
__global__ void inner_kernel(Product<T, Gated> product) {
  const ExpertsArgs& args = product.args;
  const int row = static_cast<int>(blockIdx.x) / args.chosen;
  const bool active = args.position == nullptr || args.position[row] >= 0;
  await_inputs();
  if (!active) {
    return;
  }
  const int index = static_cast<int>(blockIdx.y);
  const ops::LoraUpdate update = product.update(row, args.routes.expert[blockIdx.x], index);
  const int pair = args.routes.place[blockIdx.x];
  const T* x = product.input(pair);
  const int in = product.in();
  for (int r = warp_index(); r < update.rank; r += kWarps) {
    const T* a = static_cast<const T*>(update.a) + static_cast<int64_t>(r) * in;
    float sum = 0.0F;
    for (int i = lane_index(); i < in; i += kWarp) {
      sum = fmaf(to_float(x[i]), to_float(a[i]), sum);
    }
    sum = warp_sum(sum);
    if (lane_index() == 0) {
      product.inner(pair, index)[r] = update.scale * sum;
    }
  }
}

// A block computes the channels of one tile, or two, for the pairs of one run, at most Groups * kGroupRows. Its warps
// take the inputs in turn, as those of linear_kernel do; if Gated, half of them multiply by up. Their number does not
// depend on the number of rows, and so neither does the order of a sum.
template <typename T, typename Weights, int Groups, bool Gated>
__global__ void __launch_bounds__(kWarps* kWarp) experts_kernel(Product<T, Gated> product) {
  constexpr int kMatrices = Gated ? 2 : 1;
  constexpr int kParts = kWarps / kMatrices;  // warps that share a sum
  constexpr int kStep = kParts * kStage;
  const Lane lane(threadIdx.x);
  const int part = warp_index() % kParts;
  const int index = warp_index() / kParts;
  const int tile = static_cast<int>(blockIdx.y) * Weights::kTiles;
  const int in = product.in();
  await_inputs();
  const ops::Routes& routes = product.args.routes;
  if (static_cast<int>(blockIdx.x) >= *routes.run_count) {
    return;
  }
  const ExpertRun run = routes.runs[blockIdx.x];
  const Matrix matrix = product.matrix(run.expert, index);
  const Weights weights(matrix, tile, lane);
  const T* x[Groups];
  int end[Groups];
#pragma unroll
  for (int group = 0; group < Groups; ++group) {
    const int pair = group * kGroupRows + lane.group;
    const bool active = pair < run.pairs;
    x[group] = product.input(run.first + (active ? pair : 0)) + 8 * lane.member;
    end[group] = active ? lane.end(in) : 0;
  }

  typename Weights::Stage stages[Weights::kAhead] = {};
#pragma unroll
  for (int s = 0; s < Weights::kAhead; ++s) {
    weights.template load<false>(part * kStage + s * kStep, stages[s]);
  }
  float sums[Groups][4 * Weights::kTiles] = {};
#pragma unroll 1
  for (int first = part * kStage; first < in; first += Weights::kAhead * kStep) {
#pragma unroll
    for (int s = 0; s < Weights::kAhead; ++s) {
      const int input = first + s * kStep;
#pragma unroll
      for (int group = 0; group < Groups; ++group) {
        uint4 values[2] = {};
#pragma unroll
        for (int half = 0; half < 2; ++half) {
          if (input < end[group] - half * kHalf) {
            values[half] = *reinterpret_cast<const uint4*>(x[group] + input + half * kHalf);
          }
        }
        weights.multiply(stages[s], 0, values[0], sums[group]);
        weights.multiply(stages[s], 1, values[1], sums[group]);
      }
      weights.template load<false>(input + Weights::kAhead * kStep, stages[s]);
    }
  }

  constexpr int kOutputs = kTileOutputs * Weights::kTiles;
  constexpr int kSums = kOutputs * kGroupRows * Groups;
  float* shared = shared_memory<float>();  // [kWarps, Groups * kGroupRows, kOutputs]
#pragma unroll
  for (int group = 0; group < Groups; ++group) {
#pragma unroll
    for (int i = 0; i < 4 * Weights::kTiles; ++i) {
      const int row = group * kGroupRows + 2 * lane.member + i % 2;
      shared[warp_index() * kSums + row * kOutputs + Weights::channel_of(lane, i / 2)] = sums[group][i];
    }
  }
  __syncthreads();
  for (int element = static_cast<int>(threadIdx.x); element < kSums; element += static_cast<int>(blockDim.x)) {
    const int pair = element / kOutputs;
    const int channel = tile * static_cast<int>(kTileOutputs) + element % kOutputs;
    if (channel < product.out() && pair < run.pairs) {
      float totals[kMatrices] = {};
      for (int m = 0; m < kMatrices; ++m) {
        for (int w = 0; w < kParts; ++w) {
          totals[m] += shared[(m * kParts + w) * kSums + element];
        }
        totals[m] *= Weights::scale(product.matrix(run.expert, m), channel);
      }
      product.write(run.first + pair, run.expert, channel, totals[0], totals[kMatrices - 1]);
    }
  }
}

// The same without tensor cores: a warp computes one channel.
template <typename T, typename Weights, bool Gated>
__global__ void experts_plain_kernel(Product<T, Gated> product) {
  constexpr int kMatrices = Gated ? 2 : 1;
  const int channel = static_cast<int>(blockIdx.y) * kWarps + warp_index();
  const int in = product.in();
  await_inputs();
  const ops::Routes& routes = product.args.routes;
  if (static_cast<int>(blockIdx.x) >= *routes.run_count || channel >= product.out()) {
    return;
  }
  const ExpertRun run = routes.runs[blockIdx.x];
  const Matrix matrices[2] = {product.matrix(run.expert, 0), product.matrix(run.expert, 1)};
  for (int first = run.first; first < run.first + run.pairs; first += kGroupRows) {
    const int count = min(kGroupRows, run.first + run.pairs - first);
    float sums[2][kGroupRows] = {};
    for (int quad = lane_index(); quad < (in + 3) / 4; quad += kWarp) {
      Quad weights[kMatrices];
      for (int m = 0; m < kMatrices; ++m) {
        weights[m] = Weights::load(matrices[m], channel, quad);
      }
#pragma unroll
      for (int pair = 0; pair < kGroupRows; ++pair) {
        if (pair < count) {
          const Quad x = load_quad(product.input(first + pair), in, quad);
#pragma unroll
          for (int i = 0; i < 4; ++i) {
            for (int m = 0; m < kMatrices; ++m) {
              sums[m][pair] = fmaf(weights[m].at[i], x.at[i], sums[m][pair]);
            }
          }
        }
      }
    }
#pragma unroll
    for (int pair = 0; pair < kGroupRows; ++pair) {
      const float totals[2] = {warp_sum(sums[0][pair]), warp_sum(sums[1][pair])};
      if (pair < count && lane_index() == 0) {
        product.write(first + pair, run.expert, channel, totals[0], totals[1]);
      }
    }
  }
}

// A block mixes the outputs of one row's experts.
template <typename T>
__global__ void mix_kernel(ExpertsArgs args) {
  const auto row = static_cast<int64_t>(blockIdx.x);
  const bool active = args.position == nullptr || args.position[row] >= 0;
  await_inputs();
  if (!active) {
    return;
  }
  const int32_t* place = args.routes.place + row * args.chosen;
  const float* weight = args.routes.weight + row * args.chosen;
  for (int i = static_cast<int>(threadIdx.x); i < args.hidden; i += kMixThreads) {
    float sum = 0.0F;
    for (int k = 0; k < args.chosen; ++k) {
      sum = fmaf(weight[k], args.products[static_cast<int64_t>(place[k]) * args.hidden + i], sum);
    }
    static_cast<T*>(args.y)[row * args.hidden + i] = from_float<T>(sum);
  }
}

template <typename T, typename Weights, int Groups, bool Gated>
void start(const ExpertsArgs& args, int64_t out, Stream stream) {
  constexpr size_t kSharedBytes = sizeof(float) * kWarps * Weights::kTiles * kTileOutputs * kGroupRows * Groups;
  const auto blocks = static_cast<unsigned>((ops::tiles(out) + Weights::kTiles - 1) / Weights::kTiles);
  launch_early(experts_kernel<T, Weights, Groups, Gated>,
               {dim3(static_cast<unsigned>(args.most_runs), blocks), dim3(kWarps * kWarp), kSharedBytes}, stream,
               Product<T, Gated>{args});
}

template <typename T, typename Weights, bool Gated>
void start_plain(const ExpertsArgs& args, int64_t out, Stream stream) {
  const auto blocks = static_cast<unsigned>((out + kWarps - 1) / kWarps);
  launch_early(experts_plain_kernel<T, Weights, Gated>,
               {dim3(static_cast<unsigned>(args.most_runs), blocks), dim3(kWarps * kWarp)}, stream,
               Product<T, Gated>{args});
}

template <typename T, int Groups, bool Gated>
void multiply(const ExpertsArgs& args, const Matrix& like, Stream stream) {
  if (args.adapters.updates != nullptr) {
    launch_early(inner_kernel<T, Gated>,
                 {dim3(static_cast<unsigned>(args.rows * args.chosen), Gated ? 2 : 1), dim3(kWarps * kWarp)}, stream,
                 Product<T, Gated>{args});
  }
  if constexpr (!std::is_same_v<T, float>) {
    if (like.in % 8 == 0) {
      return for_weights<T>(like,
                            [&]<typename Weights>() { start<T, Weights, Groups, Gated>(args, like.out, stream); });
    }
  }
  for_quads<T>(like.type, [&]<typename Weights>() { start_plain<T, Weights, Gated>(args, like.out, stream); });
}

template <typename T, int Groups>
void run(const ExpertsArgs& args, Stream stream) {
  multiply<T, Groups, true>(args, args.like.gate, stream);
  multiply<T, Groups, false>(args, args.like.down, stream);
  launch_early(mix_kernel<T>, {dim3(static_cast<unsigned>(args.rows)), dim3(kMixThreads)}, stream, args);
}

}  // namespace

int expert_run_pairs(int rows) { return rows <= kExpertStepRows ? kGroupRows : kPromptGroups * kGroupRows; }

void experts(const ExpertsArgs& args, Stream stream) {
  for_dtype(args.dtype, [&]<typename T>() {
    args.rows <= kExpertStepRows ? run<T, 1>(args, stream) : run<T, kPromptGroups>(args, stream);
  });
}

}  // namespace dlf::cuda
