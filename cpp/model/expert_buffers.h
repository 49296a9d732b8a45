#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>

#include "model/spec.h"
#include "ops/router.h"

namespace dlf {

// Memory for the experts of one layer while it runs; undefined for models without experts.
struct ExpertBuffers {
  at::Tensor logits;    // float32 [rows, experts]
  at::Tensor shared;    // float32 [rows, 1], logits of the shared expert; or undefined
  at::Tensor integers;  // of the routes
  at::Tensor weights;   // float32 [pairs]
  at::Tensor gated;     // [pairs, size], activations
  at::Tensor products;  // float32 [pairs, hidden]

  ExpertBuffers() = default;
  // For passes of up to `rows` rows, with as many runs of pairs; `like` has the device and the type of activations.
  ExpertBuffers(const ModelSpec& spec, int64_t rows, int64_t runs, const at::TensorOptions& like);

  ops::Routes routes() const;

  // Bytes that they take.
  static int64_t bytes(const ModelSpec& spec, int64_t rows, int64_t runs, int64_t activation_bytes);

 private:
  int64_t pairs_ = 0;
  int64_t runs_ = 0;
};

}  // namespace dlf
