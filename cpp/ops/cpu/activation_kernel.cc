#include <ATen/cpu/vec/vec.h>

#include "ops/cpu/activation.h"

namespace dlf::ops::DLF_CPU {
namespace {

using Vec = at::vec::Vectorized<float>;

template <Activation A>
Vec activated(Vec x) {
  if constexpr (A == Activation::silu) {
    return x / (Vec(1.0F) + x.neg().exp());
  } else if constexpr (A == Activation::gelu) {
    return x * Vec(0.5F) * (Vec(1.0F) + (x * Vec(0.70710678F)).erf());
  } else {
    const Vec inner = x + Vec(0.044715F) * x * x * x;
    return x * Vec(0.5F) * (Vec(1.0F) + (inner * Vec(0.79788456F)).tanh());  // sqrt(2 / pi)
  }
}

template <Activation A>
void activate_stretch(const float* gate, const float* up, const Vec& factor, float* y, int64_t size) {
  for (int64_t i = 0; i < size; i += Vec::size()) {
    const int64_t count = size - i < Vec::size() ? size - i : Vec::size();
    const Vec ups = Vec::loadu(up + i, count);
    const Vec result = gate != nullptr ? activated<A>(Vec::loadu(gate + i, count)) * ups : activated<A>(ups);
    (result * factor).store(y + i, static_cast<int>(count));
  }
}

template <Activation A>
void activate_elements(const ActivationArgs& args, int64_t begin, int64_t end) {
  const auto* gates = static_cast<const float*>(args.gate);
  for (int64_t i = begin; i < end;) {
    const int64_t row = i / args.size;
    const int64_t column = i % args.size;
    const int64_t count = args.size - column < end - i ? args.size - column : end - i;
    const int64_t from = row * args.stride + column;
    const Vec factor = args.row_gate != nullptr ? Vec(1.0F) / (Vec(1.0F) + Vec(-args.row_gate[row]).exp()) : Vec(1.0F);
    activate_stretch<A>(gates != nullptr ? gates + from : nullptr, static_cast<const float*>(args.up) + from, factor,
                        static_cast<float*>(args.y) + i, count);
    i += count;
  }
}

}  // namespace

void activation_kernel(const ActivationArgs& args, int64_t begin, int64_t end) {
  switch (args.activation) {
    case Activation::silu:
      return activate_elements<Activation::silu>(args, begin, end);
    case Activation::gelu:
      return activate_elements<Activation::gelu>(args, begin, end);
    case Activation::gelu_tanh:
      return activate_elements<Activation::gelu_tanh>(args, begin, end);
  }
}

}  // namespace dlf::ops::DLF_CPU
