#pragma once

#include "ops/linear_weights_cuda.h"
#include "support/cuda/copy_ring.h"

// How each type of weights goes through the ring of linear_ring_cuda.cu. A place of the ring holds a chunk of kChunk
// inputs of a tile; each warp multiplies kStage of them. Lanes and halves are those of linear_weights_cuda.h.
namespace dlf::cuda {

inline constexpr int kReaders = 16;  // warps that multiply
inline constexpr int kChunk = kReaders * kStage;
inline constexpr int kPlaces = 10;  // of the ring

using Ring = CopyRing<kPlaces>;

// Where a chunk goes, and which one it is.
struct Chunk {
  const Ring& ring;
  int use;
  unsigned char* place;
  int tile;
  int first;  // input
};

// float16 and bfloat16, 8 channels at a time, as the second operand of the product: with tiles of 16 the last ones
// would keep part of the device for long. Rows lie 64 bytes apart beyond their size, so that no two lanes of a quarter
// of a warp meet in a bank.
template <typename T>
struct RingRows {
  static constexpr int kChannels = 8;
  static constexpr int kSums = 4;  // of a lane; the last two are of rows that nobody has
  static constexpr int kPitch = kChunk * static_cast<int>(sizeof(T)) + 64;
  static constexpr int kPlaceBytes = kChannels * kPitch;

  __device__ static int inputs(const Matrix& matrix) { return static_cast<int>(matrix.in); }

  __device__ static void copy(const Matrix& matrix, const Chunk& chunk, int lane) {
    const int bytes = min(kChunk, static_cast<int>(matrix.in) - chunk.first) * static_cast<int>(sizeof(T));
    if (lane == 0) {
      chunk.ring.expect(chunk.use, kChannels * bytes);
    }
    __syncwarp();
    if (lane < kChannels) {
      // Beyond the last channel stands the last one again; nobody writes its sum.
      const int64_t channel = min(static_cast<int64_t>(chunk.tile) * kChannels + lane, matrix.out - 1);
      chunk.ring.copy(chunk.use, chunk.place + lane * kPitch,
                      static_cast<const T*>(matrix.data) + channel * matrix.in + chunk.first, bytes);
    }
  }

  // A half's inputs; `inside` of a lane, whether all of its eight are.
  __device__ static void multiply(const Matrix&, const unsigned char* place, int warp, const Lane& lane, int half,
                                  bool inside, const uint4& x, float (&sums)[kSums]) {
    uint4 weights = {};
    if (inside) {
      weights = *reinterpret_cast<const uint4*>(place + lane.group * kPitch + warp * kStage * sizeof(T) +
                                                half * kHalf * sizeof(T) + lane.member * 16);
    }
    multiply_add<T>(sums, {x.x, 0, x.y, 0}, weights.x, weights.y);
    multiply_add<T>(sums, {x.z, 0, x.w, 0}, weights.z, weights.w);
  }

  __device__ static bool is_used(int sum) { return sum < 2; }
  __device__ static int row_of(const Lane& lane, int /*sum*/) { return lane.group; }
  __device__ static int channel_of(const Lane& lane, int sum) { return 2 * lane.member + sum; }
  __device__ static float scale(const Matrix&, int64_t) { return 1.0F; }
};

// What int8 and int4 tiles have in common: they lie in one piece, and their channels are the first operand.
template <typename Weights, int Bits>
struct RingTiles {
  static constexpr int kChannels = static_cast<int>(ops::kTileOutputs) * Weights::kTiles;
  static constexpr int kSums = 4 * Weights::kTiles;
  static constexpr int kInputBytes = static_cast<int>(ops::kTileOutputs) * Bits / 8;  // of an input of a tile

  __device__ static int inputs(const Matrix& matrix) {
    return static_cast<int>(ops::padded_inputs(matrix.in, matrix.group));
  }
  // Beyond the last tile stands the last one again.
  __device__ static int64_t tile_of(const Matrix& matrix, const Chunk& chunk, int index) {
    return min(chunk.tile * Weights::kTiles + index, static_cast<int>(ops::tiles(matrix.out)) - 1);
  }
  __device__ static bool is_used(int /*sum*/) { return true; }
  __device__ static int row_of(const Lane& lane, int sum) { return 2 * lane.member + sum % 2; }
  __device__ static int channel_of(const Lane& lane, int sum) { return Weights::channel_of(lane, sum / 2); }
  __device__ static float scale(const Matrix& matrix, int64_t channel) { return Weights::scale(matrix, channel); }
};

template <typename T>
struct RingInt8 : RingTiles<Int8Weights<T>, 8> {
  using Base = RingTiles<Int8Weights<T>, 8>;
  static constexpr int kPlaceBytes = kChunk * Base::kInputBytes;

  __device__ static void copy(const Matrix& matrix, const Chunk& chunk, int lane) {
    const int inputs = Base::inputs(matrix);
    const int bytes = min(kChunk, inputs - chunk.first) * Base::kInputBytes;
    if (lane == 0) {
      chunk.ring.expect(chunk.use, bytes);
      chunk.ring.copy(chunk.use, chunk.place,
                      static_cast<const char*>(matrix.data) +
                          (Base::tile_of(matrix, chunk, 0) * inputs + chunk.first) * Base::kInputBytes,
                      bytes);
    }
    __syncwarp();
  }

  __device__ static void multiply(const Matrix&, const unsigned char* place, int warp, const Lane& lane, int half,
                                  bool /*inside*/, const uint4& x, float (&sums)[Base::kSums]) {
    const unsigned char* from =
        place + (warp * kStage + half * kHalf) * Base::kInputBytes + lane.member * 128 + lane.group * 8;
    typename Int8Weights<T>::Stage stage;
    stage.at[half][0] = *reinterpret_cast<const uint2*>(from);
    stage.at[half][1] = *reinterpret_cast<const uint2*>(from + 64);
    Int8Weights<T>::multiply(stage, half, x, sums);
  }
};

template <typename T, int Group>
struct RingInt4 : RingTiles<Int4Weights<T, Group>, 4> {
  using Weights = Int4Weights<T, Group>;
  using Base = RingTiles<Weights, 4>;
  static constexpr int kTileBytes = kChunk * Base::kInputBytes;
  static constexpr int kGroupBytes = 2 * static_cast<int>(ops::kTileOutputs);  // of the scales of a tile's group
  static constexpr int kScaleBytes = kChunk / Group * kGroupBytes;
  static constexpr int kPlaceBytes = Weights::kTiles * (kTileBytes + kScaleBytes);  // the weights, then the scales

  __device__ static void copy(const Matrix& matrix, const Chunk& chunk, int lane) {
    const int inputs = Base::inputs(matrix);
    const int count = min(kChunk, inputs - chunk.first);
    const int bytes = count * Base::kInputBytes;
    const int scale_bytes = count / Group * kGroupBytes;
    if (lane == 0) {
      chunk.ring.expect(chunk.use, Weights::kTiles * (bytes + scale_bytes));
    }
    __syncwarp();
    if (lane < Weights::kTiles) {
      const int64_t first = Base::tile_of(matrix, chunk, lane) * inputs + chunk.first;
      chunk.ring.copy(chunk.use, chunk.place + lane * kTileBytes,
                      static_cast<const char*>(matrix.data) + first * Base::kInputBytes, bytes);
      chunk.ring.copy(chunk.use, chunk.place + Weights::kTiles * kTileBytes + lane * kScaleBytes,
                      static_cast<const char*>(matrix.scale) + first / Group * kGroupBytes, scale_bytes);
    }
  }

  __device__ static void multiply(const Matrix&, const unsigned char* place, int warp, const Lane& lane, int half,
                                  bool /*inside*/, const uint4& x, float (&sums)[Base::kSums]) {
    const int tile = lane.group / 4;
    const int quad = lane.group % 4;
    const int input = warp * kStage + half * kHalf;
    typename Weights::Stage stage;
    stage.at[half] = *reinterpret_cast<const uint4*>(place + tile * kTileBytes + input * Base::kInputBytes +
                                                     lane.member * 64 + quad * 16);
    stage.scale[half % Weights::kScales] = *reinterpret_cast<const uint2*>(
        place + Weights::kTiles * kTileBytes + tile * kScaleBytes + input / Group * kGroupBytes + quad * 8);
    Weights::multiply(stage, half, x, sums);
  }
};

}  // namespace dlf::cuda
