#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <functional>
#include <span>
#include <vector>

#include "engine/sequence.h"

namespace dlf {

// Masks that a request wants in a step: of the tokens that may follow its last tokens, B of them.
struct MaskRows {
  int64_t request = 0;
  std::vector<int64_t> decoded;  // since the last call for this request
  std::vector<int64_t> drafted;  // behind them; they may turn out wrong
  at::Tensor words;              // int32 [B, mask_words(V)], all 0: a mask that is left so fails its position
};

// Has the caller write masks.
using CallMasks = std::function<void(std::span<const MaskRows>)>;

// Masks of a step, which its sequences want one after the other.
class StepMasks {
 public:
  explicit StepMasks(int64_t vocab) : vocab_(vocab) {}

  // Wants masks of a sequence, in rows of `words`, each `stride` words behind the one before: after its `decoded`
  // tokens that no mask has followed yet, and after each drafted one behind them, but for the first `written`.
  void want(Sequence& sequence, std::span<const int64_t> decoded, std::span<const int64_t> drafted, int64_t written,
            int32_t* words, int64_t stride);

  // Has the caller write the masks that are wanted, if any.
  void ask(const CallMasks& call);

 private:
  int64_t vocab_;
  std::vector<MaskRows> rows_;
};

}  // namespace dlf
