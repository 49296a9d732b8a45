#include "ops/tiles.h"

#include <c10/util/Exception.h>

#include <algorithm>
#include <bit>
#include <cstdint>
#include <vector>

namespace dlf::ops {
namespace {

MatrixType type_of(const at::Tensor& data, const std::string& name) {
  TORCH_CHECK_VALUE(data.dim() == 4 && (data.scalar_type() == at::kChar || data.scalar_type() == at::kByte), "tensor ",
                    name, " is ", data.scalar_type(), " ", data.sizes(), "; with scales beside it, it must be tiles");
  return data.scalar_type() == at::kChar ? MatrixType::int8
         : data.size(2) == kTileOutputs  ? MatrixType::int4
                                         : MatrixType::int6;
}

std::vector<int64_t> data_shape(MatrixType type, int64_t tiles, int64_t padded) {
  switch (type) {
    case MatrixType::int8:
      return {tiles, padded / 4, kTileOutputs, 4};
    case MatrixType::int6:
      return {tiles, padded / kInputGroup, 6, kTileOutputs * 4};
    default:
      return {tiles, padded / 8, kTileOutputs, 4};
  }
}

// Inputs for which an index of the data's second dimension stands.
int64_t inputs_at(MatrixType type) { return type == MatrixType::int8 ? 4 : type == MatrixType::int6 ? kInputGroup : 8; }

DType scale_type(const at::Tensor& scale, const std::string& name) {
  switch (scale.scalar_type()) {
    case at::kFloat:
      return DType::float32;
    case at::kBFloat16:
      return DType::bfloat16;
    case at::kHalf:
      return DType::float16;
    default:
      TORCH_CHECK_VALUE(false, "tensor ", name, " is ", scale.scalar_type(), "; scales are floating-point");
  }
}

void check(const at::Tensor& tensor, const std::string& name, at::ScalarType type, at::IntArrayRef shape) {
  TORCH_CHECK_VALUE(tensor.scalar_type() == type && tensor.sizes() == shape && tensor.is_contiguous(), "tensor ", name,
                    " is ", tensor.scalar_type(), " ", tensor.sizes(), "; tiles of this layer are ", type, " ", shape);
}

// Number of groups that scales [tiles, groups, 16] have.
int64_t count_of(const at::Tensor& scale, const std::string& name) {
  TORCH_CHECK_VALUE(scale.dim() == 3 && scale.size(1) > 0, "tensor ", name, " has shape ", scale.sizes(),
                    "; scales of tiles have [tiles, groups, 16]");
  return scale.size(1);
}

const void* data(const at::Tensor& tensor) { return tensor.defined() ? tensor.const_data_ptr() : nullptr; }

}  // namespace

int64_t Tiles::bytes() const {
  int64_t total = 0;
  for (const TilePart& part : kTileParts) {
    const at::Tensor& tensor = this->*part.tensor;
    total += tensor.defined() ? static_cast<int64_t>(tensor.nbytes()) : 0;
  }
  return total;
}

int64_t input_unit(const Matrix& matrix) {
  return is_quantized(matrix.type) ? padded_inputs(1, matrix.block > 0 ? matrix.block : matrix.group) : 1;
}

Tiles outputs_of(const Tiles& tiles, int64_t first, int64_t count) {
  TORCH_INTERNAL_ASSERT(first % kTileOutputs == 0);
  Tiles found;
  for (const TilePart& part : kTileParts) {
    if (const at::Tensor& tensor = tiles.*part.tensor; tensor.defined()) {
      found.*part.tensor = tensor.narrow(0, first / kTileOutputs, ops::tiles(count));
    }
  }
  return found;
}

Tiles inputs_of(const Tiles& tiles, const Matrix& matrix, int64_t first, int64_t count) {
  TORCH_INTERNAL_ASSERT(first % input_unit(matrix) == 0);
  const int64_t padded = round_up(count, input_unit(matrix));
  Tiles found;
  for (const TilePart& part : kTileParts) {
    const at::Tensor& tensor = tiles.*part.tensor;
    if (tensor.defined() && tensor.dim() > 2) {  // each index of its second dimension stands for so many inputs
      const int64_t inputs = padded_inputs(matrix) / tensor.size(1);
      found.*part.tensor = tensor.narrow(1, first / inputs, padded / inputs);
    } else {
      found.*part.tensor = tensor;  // of whole channels
    }
  }
  return found;
}

Matrix matrix_of(const Tiles& tiles, int64_t out, int64_t in, const std::string& name) {
  const int64_t count = ops::tiles(out);
  Matrix matrix = {data(tiles.data), data(tiles.scale), out, in, type_of(tiles.data, name), 0};
  const int64_t padded = tiles.data.size(1) * inputs_at(matrix.type);
  std::vector<int64_t> scales = {count, kTileOutputs};
  if (tiles.scale.dim() != 2) {
    const int64_t groups = count_of(tiles.scale, name + ".scale");
    matrix.group = padded / groups;
    scales = {count, groups, kTileOutputs};
    const int64_t least = matrix.type == MatrixType::int8 ? kInputGroup : kHalfGroup;
    TORCH_CHECK_VALUE(
        matrix.group >= least && std::has_single_bit(static_cast<uint64_t>(matrix.group)) && padded % groups == 0,
        "tensor ", name, ".scale has ", groups, " groups for ", padded,
        " inputs; a group has 32, 64, 128, ... inputs, of 4 and 6 bits also 16");
  }
  at::ScalarType type = tiles.scale.scalar_type();
  if (tiles.block_scale.defined()) {
    const int64_t blocks = count_of(tiles.block_scale, name + ".block_scale");
    matrix.block = padded / blocks;
    TORCH_CHECK_VALUE(matrix.group > 0 && padded % blocks == 0 && matrix.block >= std::max(matrix.group, kInputGroup) &&
                          std::has_single_bit(static_cast<uint64_t>(matrix.block)),
                      "tensor ", name, ".block_scale has ", blocks, " blocks for ", padded, " inputs in groups of ",
                      matrix.group);
    check(tiles.block_scale, name + ".block_scale", at::kHalf, {count, blocks, kTileOutputs});
    matrix.block_scale = data(tiles.block_scale);
    matrix.scale_type = DType::float16;
    type = at::kChar;
  } else {
    matrix.scale_type = scale_type(tiles.scale, name + ".scale");
  }
  check(tiles.data, name, tiles.data.scalar_type(), data_shape(matrix.type, count, padded_inputs(matrix)));
  check(tiles.scale, name + ".scale", type, scales);
  if (tiles.minimum.defined()) {
    const bool zero = matrix.block == 0 && tiles.minimum.scalar_type() == at::kChar;
    check(tiles.minimum, name + ".minimum", zero ? at::kChar : type, scales);
    matrix.origin = zero ? Origin::zero : Origin::minimum;
    matrix.minimum = data(tiles.minimum);
  }
  const bool block_minimum = matrix.block > 0 && matrix.origin == Origin::minimum;
  TORCH_CHECK_VALUE(tiles.block_minimum.defined() == block_minimum, "tensor ", name,
                    ".block_minimum stands beside a minimum and a block_scale");
  if (block_minimum) {
    check(tiles.block_minimum, name + ".block_minimum", at::kHalf, tiles.block_scale.sizes());
    matrix.block_minimum = data(tiles.block_minimum);
  }
  return matrix;
}

}  // namespace dlf::ops
