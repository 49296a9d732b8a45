#pragma once

#include "support/cuda/stream.h"
#include "support/dtype.h"

namespace dlf::cuda {

struct BiasArgs {
  void* y;            // [rows, stride] of dtype
  const float* bias;  // [size]
  int rows;
  int size;
  int stride;
  DType dtype;
};

// Adds the bias to y, for products of the matrix library.
void add_bias(const BiasArgs& args, Stream stream);

}  // namespace dlf::cuda
