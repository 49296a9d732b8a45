#pragma once

#include <ATen/cpu/vec/vec.h>

#include <cmath>

#include "ops/cpu/attention.h"

// Local to the *_kernel.cc file and the instruction set that it is compiled for.
namespace dlf::ops::DLF_CPU {
namespace {

// Bounds scores by softcap * tanh(score / softcap), and those beside [low, high), up to whole vectors.
inline void cap(float* scores, int64_t low, int64_t high, float softcap) {
  using Vec = at::vec::Vectorized<float>;
  for (int64_t j = low / Vec::size() * Vec::size(); j < high; j += Vec::size()) {
    ((Vec::loadu(scores + j) / Vec(softcap)).tanh() * Vec(softcap)).store(scores + j);
  }
}

// Turns the scores [low, high) of a block into weights relative to the largest score so far. Returns the factor for the
// sums of earlier weights. Overwrites scores beside them, up to whole vectors.
inline float soften(float* scores, int64_t low, int64_t high, RunningSoftmax& softmax) {
  using Vec = at::vec::Vectorized<float>;
  float maximum = softmax.maximum;
  for (int64_t j = low; j < high; ++j) {
    maximum = scores[j] > maximum ? scores[j] : maximum;
  }
  const float rescale = std::exp(softmax.maximum - maximum);
  softmax.maximum = maximum;
  for (int64_t j = low / Vec::size() * Vec::size(); j < high; j += Vec::size()) {
    (Vec::loadu(scores + j) - Vec(maximum)).exp().store(scores + j);
  }
  softmax.total *= rescale;
  for (int64_t j = low; j < high; ++j) {
    softmax.total += scores[j];
  }
  return rescale;
}

}  // namespace
}  // namespace dlf::ops::DLF_CPU
