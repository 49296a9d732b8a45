#pragma once

#include "ops/cuda/linear.h"
#include "support/cuda/launch.h"

// Shared by the kernels of a product: which rows are active, and how a sum is written.
namespace dlf::cuda {

__device__ inline bool is_active(const LinearArgs& args, int row) {
  return row < args.rows && (args.position == nullptr || args.position[row] >= 0);
}

__device__ inline float with_bias(const LinearArgs& args, int64_t channel, float value) {
  return value + (args.bias != nullptr ? args.bias[channel] : 0.0F);
}

template <typename T>
__device__ void write(const LinearArgs& args, int row, int64_t channel, float value) {
  const int64_t place = static_cast<int64_t>(row) * args.y_stride + channel;
  if (args.y_float) {
    static_cast<float*>(args.y)[place] = value;
  } else {
    static_cast<T*>(args.y)[place] = from_float<T>(value);
  }
}

}  // namespace dlf::cuda
