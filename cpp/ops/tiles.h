#pragma once

#include <ATen/core/Tensor.h>

#include <string>

#include "ops/matrix.h"

namespace dlf::ops {

// The tensors of a quantized matrix, in the layouts of matrix.h. Their types and shapes say everything that a Matrix
// does: a scale is int8 if it has a block_scale, and an int8 minimum beside a float scale holds zero points.
struct Tiles {
  at::Tensor data;
  at::Tensor scale = {};  // or undefined, and so below
  at::Tensor minimum = {};
  at::Tensor block_scale = {};
  at::Tensor block_minimum = {};

  int64_t bytes() const;
};

// A tensor of Tiles, and what its name adds to that of the data.
struct TilePart {
  const char* suffix;
  at::Tensor Tiles::* tensor;
};
inline constexpr TilePart kTileParts[] = {{"", &Tiles::data},
                                          {".scale", &Tiles::scale},
                                          {".minimum", &Tiles::minimum},
                                          {".block_scale", &Tiles::block_scale},
                                          {".block_minimum", &Tiles::block_minimum}};

// Returns views of the tiles of some outputs, whole tiles of them unless they are the last ones; and of some inputs,
// whole groups and blocks of them unless they are the last ones (input_unit()).
Tiles outputs_of(const Tiles& tiles, int64_t first, int64_t count);
Tiles inputs_of(const Tiles& tiles, const Matrix& matrix, int64_t first, int64_t count);

// Inputs that cannot be separated from each other.
int64_t input_unit(const Matrix& matrix);

// Returns the matrix [out, in] that tiles hold, and a ValueError that begins with `name` if they cannot hold it.
Matrix matrix_of(const Tiles& tiles, int64_t out, int64_t in, const std::string& name);

}  // namespace dlf::ops
