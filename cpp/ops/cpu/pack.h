#pragma once

#include "ops/tiles.h"
#include "support/thread_team.h"

namespace dlf::ops {

// Integers and scales as a file has them: a weight is (value − zero) * scale + minimum. dlf/checkpoints/packed.py has
// the shapes and types.
struct PackedMatrix {
  at::Tensor values;  // int8 or uint8 [out, in]
  at::Tensor scale;
  at::Tensor minimum;  // or undefined, and so below
  int bits;
  int64_t group;
  at::Tensor zero;
  int64_t block;
  at::Tensor block_scale;
  at::Tensor block_minimum;
};

// The narrowest tiles for values of so many bits; float32 if none hold them. Signed values with a minimum need int8.
MatrixType tile_type(int bits, int64_t group, bool is_signed, bool has_minimum);

// Lays out a packed matrix in the tiles that hold its numbers exactly: int4, int6 or int8. Throws a ValueError if none
// do, or if a number is out of its range or not finite.
Tiles pack(const PackedMatrix& packed, ThreadTeam& team);

}  // namespace dlf::ops
