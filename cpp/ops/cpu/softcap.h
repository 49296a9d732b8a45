#pragma once

#include <ATen/cpu/vec/vec.h>

#include <cstdint>

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

}  // namespace
}  // namespace dlf::ops::DLF_CPU
