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

// y += bias, for the products of the matrix library.
void add_bias(const BiasArgs& args, Stream stream);

}  // namespace dlf::cuda
