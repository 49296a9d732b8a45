#pragma once

#include <cstdint>

namespace dlf::ops {

// Rows of the head that an adapter has of its own: y[token[i]] = x · rows[i] in place of the base's logit.
struct OwnLogits {
  const void* rows;      // [count, in]; null: it has none
  const int32_t* token;  // [count], or null: row i is that of token i
  int count;
};

}  // namespace dlf::ops
