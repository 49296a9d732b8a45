#pragma once

#include <cstdint>

#include "sampling/cuda/sampler.h"
#include "support/cuda/stream.h"

namespace dlf::cuda {

struct LookUpArgs {
  SampleArgs sampler;     // whose sequences are drafted
  const int32_t* active;  // [sequences], 0: the sequence is skipped
  int32_t count;          // tokens of each
  int32_t* drafts;        // [count, sequences]; -1 where there is nothing
};

// PromptLookup for all sequences: drafts what followed their last tokens when they came before, and puts it behind
// their tokens too, for choices further ahead to see.
void look_up(const LookUpArgs& args, Stream stream);

}  // namespace dlf::cuda
