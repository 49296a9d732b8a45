#pragma once

namespace dlf::ops {

// Changes the logits of a head in place: y *= multiplier, and then y = softcap * tanh(y / softcap), unless that is 0
// (Gemma 2, arXiv 2408.00118).
struct LogitArgs {
  float* y;  // [rows, size]
  int rows;
  int size;
  float multiplier;
  float softcap;
};

}  // namespace dlf::ops
