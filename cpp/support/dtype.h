#pragma once

#include <cstdint>

namespace dlf {

// Element types of weights and of the KV cache. Activations and logits are always float32.
enum class DType : int8_t { float32, bfloat16 };

}  // namespace dlf
