#pragma once

#include <cstdint>

#include "model/spec.h"
#include "support/dtype.h"

namespace dlf {

// What decides how much memory a model takes; known before any of its tensors is loaded.
struct ModelSize {
  ModelSpec spec;
  DType dtype;      // of the embedding, the activations on a GPU and the KV cache
  bool quantized;   // whether any of its linear layers are quantized
  int64_t weights;  // bytes
  int64_t adapters = 0;
  int64_t expert_rank = 0;  // largest rank of adapters of experts
};

}  // namespace dlf
