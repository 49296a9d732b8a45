#pragma once

#include <cstdint>

#include "support/cuda/stream.h"
#include "support/dtype.h"

// What a device of a split model (model/shard.h) does with the parts that the others have computed.
namespace dlf::cuda {

inline constexpr int kMostParts = 8;

// y = the sum of some vectors, added in their order, so that all devices get the same bits.
struct SumPartsArgs {
  const float* parts[kMostParts];  // [size] each
  int count;
  void* y;  // [size], of dtype or float32
  bool y_float;
  int64_t size;
  DType dtype;
};
void sum_parts(const SumPartsArgs& args, Stream stream);

// y = some matrices side by side.
struct JoinColumnsArgs {
  const float* parts[kMostParts];  // [rows, columns of the part]
  int64_t first[kMostParts + 1];   // column of y at which each begins, and the number of y's columns
  int count;
  float* y;                  // [rows, columns]
  const int32_t* positions;  // [rows]; −1: the row is idle and stays as it is; null: no row is idle
  int rows;
};
void join_columns(const JoinColumnsArgs& args, Stream stream);

// Numbers tokens from the `first` one on; those that are not among the next `size` become −1.
struct OwnTokensArgs {
  const int32_t* from;  // [count]
  int32_t* to;          // [count], may be `from`
  int count;
  int32_t first;
  int32_t size;
};
void own_tokens(const OwnTokensArgs& args, Stream stream);

}  // namespace dlf::cuda
