#pragma once

#include <cstdint>

#include "sampling/cuda/sampler.h"
#include "support/cuda/stream.h"

namespace dlf::cuda {

struct LookUpArgs {
  SampleArgs sampler;     // whose sequences are drafted
  const int32_t* active;  // [sequences], 0: the sequence is skipped
  int32_t count;          // tokens of each
  int32_t* drafts;        // [count, sequences]; -1: none
};

// Runs PromptLookup for all sequences. The drafts also go behind the sequences' tokens, for choices further ahead to
// see.
void look_up(const LookUpArgs& args, Stream stream);

}  // namespace dlf::cuda
