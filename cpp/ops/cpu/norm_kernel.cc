#include <ATen/cpu/vec/functional.h>
#include <ATen/cpu/vec/vec.h>

#include <cmath>

#include "ops/cpu/norm.h"

namespace dlf::ops::DLF_CPU {

using Vec = at::vec::Vectorized<float>;

void rms_norm_kernel(const NormArgs& args, int64_t begin, int64_t end) {
  for (int64_t row = begin; row < end; ++row) {
    float* x = args.x + row * args.size;
    float* y = static_cast<float*>(args.y) + row * args.size;
    if (args.branch != nullptr) {
      const float* branch = static_cast<const float*>(args.branch) + row * args.size;
      for (int64_t j = 0; j < args.size; ++j) {
        x[j] += branch[j];
      }
    }
    Vec squares(0.0F);
    int64_t i = 0;
    for (; i + Vec::size() <= args.size; i += Vec::size()) {
      const Vec values = Vec::loadu(x + i);
      squares = at::vec::fmadd(values, values, squares);
    }
    float total = at::vec::vec_reduce_all<float>([](Vec a, Vec b) { return a + b; }, squares);
    for (; i < args.size; ++i) {
      total += x[i] * x[i];
    }
    const float scale = 1.0F / std::sqrt(total / static_cast<float>(args.size) + args.epsilon);
    for (int64_t j = 0; j < args.size; ++j) {
      y[j] = x[j] * scale * args.weight[j];
    }
  }
}

}  // namespace dlf::ops::DLF_CPU
