#include <ATen/cpu/vec/vec.h>

#include "ops/activation.h"

namespace dlf::ops::DLF_CPU {

using Vec = at::vec::Vectorized<float>;

void swiglu_kernel(const SwiGluArgs& args, int64_t begin, int64_t end) {
  for (int64_t i = begin; i < end; i += Vec::size()) {
    const int64_t count = end - i < Vec::size() ? end - i : Vec::size();
    const Vec gate = Vec::loadu(args.gate + i, count);
    const Vec up = Vec::loadu(args.up + i, count);
    const Vec result = gate / (Vec(1.0F) + gate.neg().exp()) * up;
    result.store(args.y + i, static_cast<int>(count));
  }
}

}  // namespace dlf::ops::DLF_CPU
