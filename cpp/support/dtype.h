#pragma once

#include <cstdint>

namespace dlf {

// Element types of weights and of the KV cache, and on CUDA of activations; on the CPU those are always float32.
// float16 is for CUDA alone.
enum class DType : int8_t { float32, bfloat16, float16 };

}  // namespace dlf
