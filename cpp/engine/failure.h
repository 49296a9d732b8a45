#pragma once

#include <cstdint>
#include <string>

#include "sampling/failure.h"

namespace dlf {

// Why a sequence, or the score of a continuation, ended early: for programs, and in words.
enum class FailureKind { none, bad_logits, no_token, hook };

struct Failure {
  FailureKind kind = FailureKind::none;
  std::string message;

  explicit operator bool() const { return kind != FailureKind::none; }
  bool operator==(const Failure&) const = default;
};

// Failure of a row that could not be solved (fusion/bad_model.h), at `place`, such as "step 5".
Failure row_failure(int bad_model, const std::string& place);
// Failure of a row from which no token could be chosen.
Failure sample_failure(SampleFailure failure, int64_t step);

}  // namespace dlf
