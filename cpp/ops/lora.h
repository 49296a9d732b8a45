#pragma once

namespace dlf::ops {

// What an adapter adds to one product: y += scale * (x A^T) B^T (LoRA, Hu et al., arXiv 2106.09685).
//
// Each backend says which rows have it (cpu/lora.h, cuda/lora.h): the CPU takes runs of neighbouring rows, a GPU looks
// up a row's update in a table by its lane, so that one graph serves any adapters.
struct LoraUpdate {
  const void* a;  // [rank, in]
  const void* b;  // [rank, out], of the same type
  float scale;
  int rank;  // 0: none
  int out;
};

}  // namespace dlf::ops
