#include <ATen/cpu/vec/functional.h>
#include <ATen/cpu/vec/vec.h>

#include <cmath>

#include "ops/cpu/norm.h"

namespace dlf::ops::DLF_CPU {
namespace {

using Vec = at::vec::Vectorized<float>;

// What a norm subtracts from a row's values, and by what it multiplies them.
struct Moments {
  float mean;
  float scale;
};

float sum(const float* x, int64_t size) {
  Vec sums(0.0F);
  int64_t i = 0;
  for (; i + Vec::size() <= size; i += Vec::size()) {
    sums = sums + Vec::loadu(x + i);
  }
  float total = at::vec::vec_reduce_all<float>([](Vec a, Vec b) { return a + b; }, sums);
  for (; i < size; ++i) {
    total += x[i];
  }
  return total;
}

// Σ (x - mean)^2.
float sum_of_squares(const float* x, int64_t size, float mean) {
  Vec squares(0.0F);
  int64_t i = 0;
  for (; i + Vec::size() <= size; i += Vec::size()) {
    const Vec values = Vec::loadu(x + i) - Vec(mean);
    squares = at::vec::fmadd(values, values, squares);
  }
  float total = at::vec::vec_reduce_all<float>([](Vec a, Vec b) { return a + b; }, squares);
  for (; i < size; ++i) {
    total += (x[i] - mean) * (x[i] - mean);
  }
  return total;
}

Moments moments(const float* x, int64_t size, const NormOf& norm) {
  const auto count = static_cast<float>(size);
  const float mean = norm.kind == NormKind::layer ? sum(x, size) / count : 0.0F;
  return {mean, 1.0F / std::sqrt(sum_of_squares(x, size, mean) / count + norm.epsilon)};
}

}  // namespace

void norm_kernel(const NormArgs& args, int64_t begin, int64_t end) {
  const NormOf& norm = args.norm;
  for (int64_t row = begin; row < end; ++row) {
    float* x = args.x + row * args.size;
    float* y = static_cast<float*>(args.y) + row * args.size;
    if (args.branch != nullptr) {
      const float* branch = static_cast<const float*>(args.branch) + row * args.size;
      for (int64_t j = 0; j < args.size; ++j) {
        x[j] += branch[j] * args.branch_scale;
      }
    }
    if (norm.weight == nullptr) {
      for (int64_t j = 0; j < args.size; ++j) {
        y[j] = x[j];
      }
      continue;
    }
    const auto [mean, scale] = moments(x, args.size, norm);
    for (int64_t j = 0; j < args.size; ++j) {
      y[j] = (x[j] - mean) * scale * norm.weight[j];
    }
    for (int64_t j = 0; norm.bias != nullptr && j < args.size; ++j) {
      y[j] += norm.bias[j];
    }
  }
}

void add_norm_kernel(const AddNormArgs& args, int64_t begin, int64_t end) {
  const NormOf& norm = args.norm;
  for (int64_t row = begin; row < end; ++row) {
    float* x = args.x + row * args.size;
    const float* branch = static_cast<const float*>(args.branch) + row * args.size;
    if (norm.weight == nullptr) {
      for (int64_t j = 0; j < args.size; ++j) {
        x[j] += branch[j] * args.scale;
      }
      continue;
    }
    const auto [mean, scale] = moments(branch, args.size, norm);
    for (int64_t j = 0; j < args.size; ++j) {
      const float bias = norm.bias != nullptr ? norm.bias[j] : 0.0F;
      x[j] += ((branch[j] - mean) * scale * norm.weight[j] + bias) * args.scale;
    }
  }
}

}  // namespace dlf::ops::DLF_CPU
