#include "engine/mask.h"

#include <ATen/ops/from_blob.h>
#include <c10/util/Exception.h>

#include <utility>

#include "sampling/mask.h"

namespace dlf {

void StepMasks::want(Sequence& sequence, std::span<const int64_t> decoded, std::span<const int64_t> drafted,
                     int64_t written, int32_t* words, int64_t stride) {
  sequence.masked_tokens += static_cast<int64_t>(decoded.size());
  const auto rows = static_cast<int64_t>(drafted.size()) + 1 - written;
  const at::Tensor masks = at::from_blob(words, {rows, mask_words(vocab_)}, {stride, 1}, at::kInt);
  masks.zero_();
  rows_.push_back({sequence.request, {decoded.begin(), decoded.end()}, {drafted.begin(), drafted.end()}, masks});
}

void StepMasks::ask(const CallMasks& call) {
  const std::vector<MaskRows> rows = std::exchange(rows_, {});
  if (!rows.empty()) {
    TORCH_CHECK(call, "request ", rows[0].request, " has a mask, but the step was called without");
    call(rows);
  }
}

}  // namespace dlf
