#pragma once

#include <cstdint>

#include "ops/matrix.h"
#include "ops/places.h"
#include "support/dtype.h"
#include "support/host_device.h"

namespace dlf::ops {

// y = multiplier * the embedding of each row's token, and, with a table of positions, that of its position.
struct EmbeddingArgs {
  Matrix weight;         // [vocab, size]: floats of dtype, or tiles
  const int32_t* token;  // [rows / lanes]: row r has token[r / lanes], which is inside the vocabulary, or −1: zeros
  float* y;              // [rows, size]
  int rows;
  int lanes;
  DType dtype;
  float multiplier = 1.0F;
  const void* positions = nullptr;  // [positions, size], of dtype, or null
  Places places = {};               // needed with `positions`

  DLF_HOST_DEVICE int64_t size() const { return weight.in; }
};

// Rows of an embedding that an adapter has of its own.
struct OwnEmbedding {
  const void* rows;       // [count, size], of the embedding's type; null: it has none
  const int32_t* row_of;  // [vocab]: the row of each token, −1: none; null: a token's row is its number

  // The token's row, −1: the base's counts.
  DLF_HOST_DEVICE int32_t row(int32_t token) const {
    return rows == nullptr || token < 0 ? -1 : row_of == nullptr ? token : row_of[token];
  }
};

}  // namespace dlf::ops
