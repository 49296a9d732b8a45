#pragma once

#include "ops/activation.h"
#include "ops/matrix.h"
#include "ops/router.h"
#include "support/dtype.h"

namespace dlf::ops {

// The feed-forward network of one expert: down(activation(gate(x)) * up(x)). Experts of a layer have the same sizes and
// types.
struct Expert {
  Matrix gate;  // [inner, hidden]
  Matrix up;    // [inner, hidden]
  Matrix down;  // [hidden, inner]
};

// Mixes the outputs of each row's experts: y = sum of weight * expert(x) over the chosen ones, in their order (Shazeer
// et al., arXiv 1701.06538). A row's result does not depend on the other rows. Activations are of dtype, which on the
// CPU is always float32.
struct ExpertsArgs {
  const Expert* experts;  // in the backend's memory
  Routes routes;
  const void* x;    // [rows, hidden], activations
  void* gated;      // [pairs, inner], activations: scratch
  float* products;  // [pairs, hidden]: scratch
  void* y;          // [rows, hidden], activations
  int rows;
  int chosen;
  int hidden;
  int inner;
  DType dtype;
  Activation activation = Activation::silu;
};

}  // namespace dlf::ops
