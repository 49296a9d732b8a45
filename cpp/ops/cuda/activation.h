#pragma once

#include "support/cuda/stream.h"
#include "support/dtype.h"

namespace dlf::cuda {

struct SwiGluArgs {
  const void* gate_up;  // [rows, stride], of dtype: gate [size] at 0, up [size] at up_offset
  int stride;
  int up_offset;
  void* y;  // [rows, size], of dtype
  int rows;
  int size;
  DType dtype;
};

// SwiGLU: y = gate * sigmoid(gate) * up (Shazeer, arXiv 2002.05202).
void swiglu(const SwiGluArgs& args, Stream stream);

}  // namespace dlf::cuda
