#pragma once

#include "ops/matrix.h"

namespace dlf::ops {

// Writes the weights [in] of one output of a matrix in tiles, each computed by itself.
void read_tile_row(const Matrix& matrix, int64_t output, float* y);

}  // namespace dlf::ops
