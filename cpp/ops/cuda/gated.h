#pragma once

#include "ops/activation.h"
#include "support/cuda/launch.h"

namespace dlf::cuda {

// activation(gate) * up (Shazeer, arXiv 2002.05202); all kernels that gate call it, so that they agree to the bit.
template <ops::Activation A>
__device__ float gated_of(float gate, float up) {
  if constexpr (A == ops::Activation::silu) {
    return gate / (1.0F + expf(-gate)) * up;
  } else if constexpr (A == ops::Activation::gelu) {
    return 0.5F * gate * (1.0F + erff(gate * 0.70710678F)) * up;
  } else {
    return 0.5F * gate * (1.0F + tanhf(0.79788456F * (gate + 0.044715F * gate * gate * gate))) * up;  // sqrt(2 / pi)
  }
}

__device__ inline float gated_of(ops::Activation activation, float gate, float up) {
  switch (activation) {
    case ops::Activation::silu:
      return gated_of<ops::Activation::silu>(gate, up);
    case ops::Activation::gelu:
      return gated_of<ops::Activation::gelu>(gate, up);
    default:
      return gated_of<ops::Activation::gelu_tanh>(gate, up);
  }
}

}  // namespace dlf::cuda
