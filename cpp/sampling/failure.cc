#include "sampling/failure.h"

namespace dlf {

std::string describe(SampleFailure failure, int64_t step) {
  const std::string number = std::to_string(step);
  if (failure == SampleFailure::broken_logits) {
    return "the logits of step " + number + " hold NaN or +inf: check the models' weights and dtype";
  }
  return "every token is excluded at step " + number + ": relax bad_words / logit_bias";
}

}  // namespace dlf
