#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <memory>
#include <vector>

#include "engine/drafting/pass_times.h"
#include "engine/sequence.h"
#include "model/cpu/decoder.h"

namespace dlf {

// A model on the processor, the lanes that run on it, and their logits of this step.
struct CpuModel {
  std::unique_ptr<Decoder> decoder;
  at::Tensor logits;        // [(max_batch + kDraftRows) * lanes, vocab]
  int64_t logits_used = 0;  // rows, in this step
  std::vector<Row> rows;    // tokens to decode in one pass
  PassTimes times;

  int64_t vocab() const { return logits.size(1); }

  // The next row of the logits, for a lane's next token.
  float* add_logits(Lane& lane);

  // Adds the tokens of a lane that it has not read to the rows.
  void add_rows(const Sequence& sequence, Lane& lane, int64_t adapter);

  // One pass of these rows, if there are any, to the logits that were added for them.
  void decode();
};

}  // namespace dlf
