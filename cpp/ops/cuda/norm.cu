#include <algorithm>

#include "ops/cuda/norm.h"
#include "ops/cuda/vector.h"
#include "support/cuda/launch.h"

namespace dlf::cuda {
namespace {

using ops::AddNormArgs;
using ops::NormArgs;
using ops::NormKind;
using ops::NormOf;

constexpr int kMaxThreads = 512;
constexpr int kMaxWarps = kMaxThreads / kWarp;
constexpr int kHeld = 4;  // vectors of a row that a thread keeps in registers

// Sum over the block, the same in each thread. `warp_sums` is [kMaxWarps].
__device__ float block_sum(float value, float* warp_sums) {
  const int thread = static_cast<int>(threadIdx.x);
  value = warp_sum(value);
  if (thread % kWarp == 0) {
    warp_sums[thread / kWarp] = value;
  }
  __syncthreads();
  const int lane = thread % kWarp;
  return warp_sum(lane < static_cast<int>(blockDim.x) / kWarp ? warp_sums[lane] : 0.0F);
}

template <typename T, int N>
__device__ Vector<T, N> activations(const Vector<float, N>& values) {
  Vector<T, N> converted;
#pragma unroll
  for (int j = 0; j < N; ++j) {
    converted.at[j] = from_float<T>(values.at[j]);
  }
  return converted;
}

template <typename T, int N>
__device__ Vector<float, N> floats(const Vector<T, N>& values) {
  Vector<float, N> converted;
#pragma unroll
  for (int j = 0; j < N; ++j) {
    converted.at[j] = to_float(values.at[j]);
  }
  return converted;
}

// values += added * scale
template <int N>
__device__ void add_scaled(Vector<float, N>& values, const Vector<float, N>& added, float scale) {
#pragma unroll
  for (int j = 0; j < N; ++j) {
    values.at[j] = fmaf(added.at[j], scale, values.at[j]);
  }
}

// A row of the stream: x becomes x + branch * branch_scale, y its norm.
template <typename T, int N>
struct StreamRow {
  using Args = NormArgs;
  using Floats = Vector<float, N>;

  __device__ StreamRow(const NormArgs& args, int row)
      : x(args.x + static_cast<int64_t>(row) * args.size),
        branch(args.branch != nullptr ? static_cast<const T*>(args.branch) + static_cast<int64_t>(row) * args.size
                                      : nullptr),
        y(static_cast<T*>(args.y) + static_cast<int64_t>(row) * args.size),
        scale(args.branch_scale) {}

  __device__ Floats read(int i) const {
    auto values = load<float, N>(x + i);
    if (branch != nullptr) {
      add_scaled(values, floats(load<T, N>(branch + i)), scale);
      store(x + i, values);
    }
    return values;
  }
  __device__ Floats again(int i) const { return load<float, N>(x + i); }
  __device__ void write(int i, const Floats& normed) const { store(y + i, activations<T>(normed)); }

  float* x;
  const T* branch;
  T* y;
  float scale;
};

// A row of a branch, whose norm is added to the stream.
template <typename T, int N>
struct BranchRow {
  using Args = AddNormArgs;
  using Floats = Vector<float, N>;

  __device__ BranchRow(const AddNormArgs& args, int row)
      : x(args.x + static_cast<int64_t>(row) * args.size),
        branch(static_cast<const T*>(args.branch) + static_cast<int64_t>(row) * args.size),
        scale(args.scale) {}

  __device__ Floats read(int i) const { return floats(load<T, N>(branch + i)); }
  __device__ Floats again(int i) const { return read(i); }
  __device__ void write(int i, const Floats& normed) const {
    auto values = load<float, N>(x + i);
    add_scaled(values, normed, scale);
    store(x + i, values);
  }

  float* x;
  const T* branch;
  float scale;
};

// A row of a projection, which becomes its norm.
template <typename T, int N>
struct ProjectionRow {
  using Args = ProjectionNormArgs;
  using Floats = Vector<float, N>;

  __device__ ProjectionRow(const ProjectionNormArgs& args, int row)
      : x(static_cast<T*>(args.x) + static_cast<int64_t>(row) * args.stride) {}

  __device__ Floats read(int i) const { return floats(load<T, N>(x + i)); }
  __device__ Floats again(int i) const { return read(i); }
  __device__ void write(int i, const Floats& normed) const { store(x + i, activations<T>(normed)); }

  T* x;
};

__device__ inline NormOf norm_of(const NormArgs& args) { return args.norm; }
__device__ inline NormOf norm_of(const AddNormArgs& args) { return args.norm; }
__device__ inline NormOf norm_of(const ProjectionNormArgs& args) { return args.norm; }

// One block per row. It needs almost no shared memory, so that it fits beside the product before it. Weights are
// prefetched before the row is ready.
template <typename Row, int N, bool Centred>
__global__ void __launch_bounds__(kMaxThreads, 3) norm_kernel(typename Row::Args args) {
  using Floats = Vector<float, N>;
  const int thread = static_cast<int>(threadIdx.x);
  const int step = static_cast<int>(blockDim.x) * N;
  const NormOf norm = norm_of(args);
  const Row row(args, static_cast<int>(blockIdx.x));
  float* warp_sums = shared_memory<float>();  // [2, kMaxWarps]

  for (int i = thread * N; i < args.size; i += step) {
    prefetch(norm.weight + i);
  }
  await_inputs();

  float squares = 0.0F;
  float sum = 0.0F;
  const auto count = [&](const Floats& values, float mean) {
#pragma unroll
    for (int j = 0; j < N; ++j) {
      squares = fmaf(values.at[j] - mean, values.at[j] - mean, squares);
    }
  };
  const auto read = [&](int i) {
    const Floats values = row.read(i);
    if constexpr (Centred) {
#pragma unroll
      for (int j = 0; j < N; ++j) {
        sum += values.at[j];
      }
    } else {
      count(values, 0.0F);
    }
    return values;
  };
  Floats held[kHeld] = {};
#pragma unroll
  for (int k = 0; k < kHeld; ++k) {
    if (thread * N + k * step < args.size) {
      held[k] = read(thread * N + k * step);
    }
  }
  for (int i = thread * N + kHeld * step; i < args.size; i += step) {
    read(i);
  }
  float mean = 0.0F;
  if constexpr (Centred) {
    mean = block_sum(sum, warp_sums + kMaxWarps) / static_cast<float>(args.size);
#pragma unroll
    for (int k = 0; k < kHeld; ++k) {
      if (thread * N + k * step < args.size) {
        count(held[k], mean);
      }
    }
    for (int i = thread * N + kHeld * step; i < args.size; i += step) {
      count(row.again(i), mean);
    }
  }
  const float total = block_sum(squares, warp_sums);
  const float scale = 1.0F / sqrtf(total / static_cast<float>(args.size) + norm.epsilon);

  const auto write = [&](int i, const Floats& values) {
    const auto weight = load<float, N>(norm.weight + i);
    Floats normed;
#pragma unroll
    for (int j = 0; j < N; ++j) {
      normed.at[j] = (values.at[j] - mean) * scale * weight.at[j];
      if constexpr (Centred) {
        normed.at[j] += norm.bias != nullptr ? norm.bias[i + j] : 0.0F;
      }
    }
    row.write(i, normed);
  };
#pragma unroll
  for (int k = 0; k < kHeld; ++k) {
    if (thread * N + k * step < args.size) {
      write(thread * N + k * step, held[k]);
    }
  }
  for (int i = thread * N + kHeld * step; i < args.size; i += step) {
    write(i, row.again(i));
  }
}

// Does the same without a norm.
template <typename Row, int N>
__global__ void __launch_bounds__(kMaxThreads, 3) copy_kernel(typename Row::Args args) {
  await_inputs();
  const Row row(args, static_cast<int>(blockIdx.x));
  for (int i = static_cast<int>(threadIdx.x) * N; i < args.size; i += static_cast<int>(blockDim.x) * N) {
    row.write(i, row.read(i));
  }
}

template <template <typename, int> typename Row, typename T, int N, typename Args>
void start(const Args& args, const NormOf& norm, Stream stream) {
  const int threads = std::min((args.size / N + kWarp - 1) / kWarp * kWarp, kMaxThreads);
  const Shape shape = {dim3(static_cast<unsigned>(args.rows)), dim3(static_cast<unsigned>(threads)),
                       sizeof(float) * 2 * kMaxWarps};
  if (norm.weight == nullptr) {
    launch_early(copy_kernel<Row<T, N>, N>, shape, stream, args);
  } else if (norm.kind == NormKind::rms) {
    launch_early(norm_kernel<Row<T, N>, N, false>, shape, stream, args);
  } else {
    launch_early(norm_kernel<Row<T, N>, N, true>, shape, stream, args);
  }
}

// Four values at a time if all rows are aligned for that.
template <template <typename, int> typename Row, typename Args>
void start(const Args& args, const NormOf& norm, bool vectors, Stream stream) {
  for_dtype(args.dtype, [&]<typename T>() {
    vectors ? start<Row, T, 4>(args, norm, stream) : start<Row, T, 1>(args, norm, stream);
  });
}

}  // namespace

void norm(const NormArgs& args, Stream stream) { start<StreamRow>(args, args.norm, args.size % 4 == 0, stream); }

void add_norm(const AddNormArgs& args, Stream stream) { start<BranchRow>(args, args.norm, args.size % 4 == 0, stream); }

void norm_projection(const ProjectionNormArgs& args, Stream stream) {
  const bool aligned = reinterpret_cast<uintptr_t>(args.x) % 16 == 0;
  start<ProjectionRow>(args, args.norm, aligned && args.size % 4 == 0 && args.stride % 4 == 0, stream);
}

}  // namespace dlf::cuda
