#pragma once

#include <cstdint>
#include <vector>

namespace dlf {

// Logit of a token that a model does not have: its probability is zero, and an expert minus its base is zero, too. It
// is finite, as the solver asks for.
inline constexpr float kNoLogit = -1e30F;

// Ids of a model whose tokenizer gives tokens other ids than the large model's. Empty if they are the same.
struct TokenMap {
  std::vector<int32_t> feed;  // by token of the large model: the model's id that it reads
  std::vector<int32_t> read;  // by token of the large model: the model's id whose logit it has; −1: kNoLogit

  bool empty() const { return read.empty(); }
  int64_t own_id(int64_t token) const { return empty() ? token : feed[token]; }
};

}  // namespace dlf
