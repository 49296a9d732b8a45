#pragma once

#include <cstdint>
#include <string>

namespace dlf {

// Why no token could be chosen.
enum class SampleFailure : int32_t {
  none,
  broken_logits,  // NaN or +inf
  all_excluded,
};

// Describes a failure, with the remedy.
std::string describe(SampleFailure failure, int64_t step);

}  // namespace dlf
