#include <ATen/cpu/vec/vec.h>

#include "ops/cpu/activation.h"

namespace dlf::ops::DLF_CPU {
namespace {

using Vec = at::vec::Vectorized<float>;

void gate_stretch(const float* gate, const float* up, float* y, int64_t size) {
  for (int64_t i = 0; i < size; i += Vec::size()) {
    const int64_t count = size - i < Vec::size() ? size - i : Vec::size();
    const Vec gates = Vec::loadu(gate + i, count);
    const Vec ups = Vec::loadu(up + i, count);
    const Vec result = gates / (Vec(1.0F) + gates.neg().exp()) * ups;
    result.store(y + i, static_cast<int>(count));
  }
}

}  // namespace

void swiglu_kernel(const SwiGluArgs& args, int64_t begin, int64_t end) {
  for (int64_t i = begin; i < end;) {
    const int64_t row = i / args.size;
    const int64_t column = i % args.size;
    const int64_t count = args.size - column < end - i ? args.size - column : end - i;
    const int64_t from = row * args.stride + column;
    gate_stretch(static_cast<const float*>(args.gate) + from, static_cast<const float*>(args.up) + from,
                 static_cast<float*>(args.y) + i, count);
    i += count;
  }
}

}  // namespace dlf::ops::DLF_CPU
