#pragma once

#include "ops/cuda/linear_weights.h"
#include "support/cuda/copy_ring.h"

// How weights go through the ring of linear_ring.cu. A place of the ring holds a chunk of kChunk inputs of a tile;
// each warp multiplies kStage of them. Lanes and halves are those of linear_weights.h.
namespace dlf::cuda {

inline constexpr int kReaders = 16;  // warps that multiply
inline constexpr int kChunk = kReaders * kStage;
// Places of the ring: enough to keep the memory busy, few enough that the kernels between two products fit beside it.
inline constexpr int kPlaces = 8;

using Ring = CopyRing<kPlaces>;

// A chunk and its place in the ring.
struct Chunk {
  const Ring& ring;
  int use;
  unsigned char* place;
  int tile;
  int first;  // input
};

// float16 and bfloat16 weights, 8 channels at a time, as the second operand of the product: with tiles of 16 the last
// ones would keep a part of the device busy for long. 64 bytes follow each row, so that the lanes of a quarter of a
// warp have no bank conflict.
//
// If Gated, a tile is four channels of the gate and the four that they gate.
template <typename T, bool Gated>
struct RingRows {
  static constexpr int kChannels = 8;
  static constexpr int kOutputs = Gated ? kChannels / 2 : kChannels;  // per tile
  static constexpr int kPitch = kChunk * static_cast<int>(sizeof(T)) + 64;
  static constexpr int kPlaceBytes = kChannels * kPitch;

  // Channels beyond the last repeat it; their sums are not written.
  __device__ static int64_t channel(const LinearArgs& args, int tile, int index) {
    const int64_t first = static_cast<int64_t>(tile) * kOutputs + index % kOutputs;
    return Gated ? min(first, int64_t{args.gated} - 1) + index / kOutputs * args.up_offset
                 : min(first, args.weight.out - 1);
  }

  __device__ static void copy(const LinearArgs& args, const Chunk& chunk, int lane) {
    const Matrix& matrix = args.weight;
    const int bytes = min(kChunk, static_cast<int>(matrix.in) - chunk.first) * static_cast<int>(sizeof(T));
    if (lane == 0) {
      chunk.ring.expect(chunk.use, kChannels * bytes);
    }
    __syncwarp();
    if (lane < kChannels) {
      chunk.ring.copy(chunk.use, chunk.place + lane * kPitch,
                      static_cast<const T*>(matrix.data) + channel(args, chunk.tile, lane) * matrix.in + chunk.first,
                      bytes);
    }
  }

  // Multiplies a half's inputs; `inside`: whether this lane's eight exist.
  __device__ static void multiply(const unsigned char* place, int warp, const Lane& lane, int half, bool inside,
                                  const uint4& x, float (&sums)[4]) {
    uint4 weights = {};
    if (inside) {
      weights = *reinterpret_cast<const uint4*>(place + lane.group * kPitch + warp * kStage * sizeof(T) +
                                                half * kHalf * sizeof(T) + lane.member * 16);
    }
    multiply_add<T>(sums, {x.x, 0, x.y, 0}, weights.x, weights.y);
    multiply_add<T>(sums, {x.z, 0, x.w, 0}, weights.z, weights.w);
  }
};

}  // namespace dlf::cuda
