#include "engine/failure.h"

#include "fusion/bad_model.h"

namespace dlf {

Failure row_failure(int bad_model, const std::string& place) {
  if (bad_model == kHookFailed) {
    return {FailureKind::hook, "the caller's function failed at " + place};
  }
  return {bad_model == kEmptySupport ? FailureKind::no_token : FailureKind::bad_logits,
          describe_bad_model(bad_model) + " at " + place};
}

Failure sample_failure(SampleFailure failure, int64_t step) {
  return {failure == SampleFailure::all_excluded ? FailureKind::no_token : FailureKind::bad_logits,
          describe(failure, step)};
}

}  // namespace dlf
