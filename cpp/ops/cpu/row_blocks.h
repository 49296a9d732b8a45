#pragma once

#include <cstdint>

// Local to the *_kernel.cc file and the instruction set that it is compiled for.
namespace dlf::ops::DLF_CPU {
namespace {

// Calls body<R>(row) on blocks of R rows that cover [row, rows): as many of Most rows as fit, then of 4, 3, 2 and 1.
template <int64_t Most, typename Body>
inline void for_row_blocks(int64_t rows, Body&& body, int64_t row = 0) {
  for (; row + Most <= rows; row += Most) {
    body.template operator()<Most>(row);
  }
  if constexpr (Most > 1) {
    for_row_blocks<(Most > 4 ? 4 : Most - 1)>(rows, body, row);
  }
}

}  // namespace
}  // namespace dlf::ops::DLF_CPU
