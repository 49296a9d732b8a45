#pragma once

#include "ops/norm.h"
#include "support/cuda/stream.h"

namespace dlf::cuda {

void norm(const ops::NormArgs& args, Stream stream);
void add_norm(const ops::AddNormArgs& args, Stream stream);

// x = norm(x), of activations.
struct ProjectionNormArgs {
  void* x;  // rows of [size], `stride` apart
  int rows;
  int size;
  int stride;
  ops::NormOf norm;
  DType dtype;
};

void norm_projection(const ProjectionNormArgs& args, Stream stream);

}  // namespace dlf::cuda
