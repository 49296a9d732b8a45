#include "ops/cuda/norm.h"
#include "ops/cuda/rope.h"
#include "ops/cuda/vector.h"
#include "support/cuda/launch.h"

namespace dlf::cuda {
namespace {

using ops::HeadNorm;
using ops::NormKind;
using ops::NormOf;
using ops::RopeArgs;

constexpr int kWarps = 4;  // per block

__device__ float clipped(float x, float bound) {
  return bound <= 0.0F ? x : x > bound ? bound : x < -bound ? -bound : x;  // a NaN stays one
}

// Rotates one head, after its norm unless that has no weight, and multiplies it. A lane reads and writes the same
// pairs, so `to` may be `from`.
template <typename T>
__device__ void rotate(const T* from, T* to, const NormOf& norm, float factor, const RopeArgs& args, int position,
                       int lane) {
  const int half = args.rotated / 2;
  const float* cos = args.cos + static_cast<int64_t>(position) * half;
  const float* sin = args.sin + static_cast<int64_t>(position) * half;
  const auto size = static_cast<float>(args.head_dim);
  float mean = 0.0F;
  float scale = 1.0F;
  if (norm.weight != nullptr) {
    if (norm.kind == NormKind::layer) {
      float sum = 0.0F;
      for (int i = lane; i < args.head_dim; i += kWarp) {
        sum += to_float(from[i]);
      }
      mean = warp_sum(sum) / size;
    }
    float squares = 0.0F;
    for (int i = lane; i < args.head_dim; i += kWarp) {
      const float value = to_float(from[i]) - mean;
      squares = fmaf(value, value, squares);
    }
    scale = 1.0F / sqrtf(warp_sum(squares) / size + norm.epsilon);
  }
  const auto value = [&](int i) {
    float x = to_float(from[i]);
    if (norm.weight != nullptr) {
      x = (x - mean) * scale * norm.weight[i] + (norm.bias != nullptr ? norm.bias[i] : 0.0F);
    }
    return clipped(x, args.clip) * factor;
  };
  // With a norm, other lanes read the head too, but they have done so by now: the sum needed all of it.
  for (int i = lane; i < half; i += kWarp) {
    const float a = value(i);
    const float b = value(i + half);
    to[i] = from_float<T>(a * cos[i] - b * sin[i]);
    to[i + half] = from_float<T>(b * cos[i] + a * sin[i]);
  }
  for (int i = args.rotated + lane; i < args.head_dim; i += kWarp) {
    to[i] = from_float<T>(value(i));
  }
}

// The norm of one head in its kernel; that of whole projections has run before.
__device__ NormOf norm_of_head(const NormOf& norm, const RopeArgs& args, int head) {
  NormOf found = norm;
  if (args.head_norm == HeadNorm::own) {
    found.weight += head * args.head_dim;
    found.bias += norm.bias != nullptr ? head * args.head_dim : 0;
  } else if (args.head_norm != HeadNorm::shared) {
    found.weight = nullptr;
  }
  return found;
}

// One warp per head of q, k and v.
template <typename T>
__global__ void rope_kernel(RopeArgs args) {
  await_inputs();
  const int lane = static_cast<int>(threadIdx.x) % kWarp;
  const int item = static_cast<int>(blockIdx.x) * kWarps + static_cast<int>(threadIdx.x) / kWarp;
  const int row = static_cast<int>(blockIdx.y);
  const int position = args.places.position_of(row);
  if (position < 0 || item >= args.heads + 2 * args.kv_heads) {
    return;
  }
  if (item < args.heads) {
    T* q = static_cast<T*>(args.q) + static_cast<int64_t>(row) * args.q_stride + item * args.head_dim;
    const float factor = args.q_scale != nullptr ? args.q_scale[position] : 1.0F;
    rotate(q, q, norm_of_head(args.q_norm, args, item), factor, args, position, lane);
    return;
  }
  const bool is_key = item < args.heads + args.kv_heads;
  const int head = (item - args.heads) % args.kv_heads;
  const T* from = static_cast<const T*>(is_key ? args.k : args.v) + static_cast<int64_t>(row) * args.kv_stride +
                  head * args.head_dim;
  const int64_t block = args.table.block_of(args.places.slot_of(row), position);
  const int64_t place =
      ((block * args.kv_heads + head) * ops::kCacheBlock + position % ops::kCacheBlock) * args.head_dim;
  T* to = static_cast<T*>(is_key ? args.k_cache : args.v_cache) + place;
  if (is_key) {
    rotate(from, to, norm_of_head(args.k_norm, args, head), 1.0F, args, position, lane);
    return;
  }
  for (int i = lane; i < args.head_dim; i += kWarp) {
    to[i] = from_float<T>(clipped(to_float(from[i]), args.clip));
  }
}

}  // namespace

void rope_and_cache(const RopeArgs& args, Stream stream) {
  if (args.head_norm == HeadNorm::whole) {
    const int rows = args.places.rows;
    const int size = args.heads * args.head_dim;
    const int kv_size = args.kv_heads * args.head_dim;
    norm_projection({args.q, rows, size, args.q_stride, args.q_norm, args.dtype}, stream);
    norm_projection({args.k, rows, kv_size, args.kv_stride, args.k_norm, args.dtype}, stream);
  }
  const auto blocks = static_cast<unsigned>((args.heads + 2 * args.kv_heads + kWarps - 1) / kWarps);
  for_dtype(args.dtype, [&]<typename T>() {
    launch_early(rope_kernel<T>, {dim3(blocks, static_cast<unsigned>(args.places.rows)), dim3(kWarps * kWarp)}, stream,
                 args);
  });
}

}  // namespace dlf::cuda
