#include "ops/cpu/linear.h"
#include "ops/cpu/linear_output.h"
#include "ops/cpu/row_blocks.h"
#include "ops/cpu/tile_dot.h"
#include "ops/cpu/tile_scales.h"
#include "ops/cpu/tile_values.h"

// Products of weights in tiles and many rows. A block of a few tiles and kGroups groups is unpacked once, to a byte for
// each weight and a float for each scale, and stays in the first cache while all rows are multiplied by it. Every sum
// has the order of linear_tiles_kernel.cc, so that a row's result is the same to the bit.
namespace dlf::ops::DLF_CPU {
namespace {

constexpr int64_t kGroups = 16;     // of a block
constexpr int64_t kMostSums = 264;  // most rows that share a block, whole blocks of rows
constexpr int64_t kTiles = kBlockTiles;

template <bool Halves>
struct Block {
  static constexpr int64_t kParts = Halves ? 2 : 1;  // parts of a group with a scale of their own

  alignas(64) char weights[kGroups][kQuads][kTiles][4 * kTileOutputs];
  alignas(64) float scale[kGroups][kParts][kTiles][kTileOutputs];
  alignas(64) float minimum[kGroups][kParts][kTiles][kTileOutputs];
};

// Sums of rows, a block's channels each.
struct RowSums {
  alignas(64) float at[kMostSums][kTiles][kTileOutputs];
};

template <typename Values, typename Scales>
void unpack(const Matrix& matrix, int64_t tile, int64_t first, int64_t groups, int64_t place,
            Block<Scales::kHalves>& block) {
  const char* weights = static_cast<const char*>(matrix.data) +
                        (tile * (padded_inputs(matrix) / kInputGroup) + first) * Values::kGroupBytes;
  const Scales scales(matrix, tile);
  for (int64_t group = 0; group < groups; ++group) {
    Values::for_quads(weights + group * Values::kGroupBytes,
                      [&]<int Quad>(const Bytes& bytes) { store_bytes(block.weights[group][Quad][place], bytes); });
    if constexpr (Scales::kPerGroup) {
      constexpr int64_t kParts = Block<Scales::kHalves>::kParts;
      for (int64_t part = 0; part < kParts; ++part) {
        const int64_t at = scales.group_of((first + group) * kInputGroup + part * kHalfGroup);
        const Floats scale = scales.scale(at);
        store(block.scale[group][part][place], scale);
        if constexpr (!Scales::kPlain) {
          if (scales.has_minimum()) {
            store(block.minimum[group][part][place], scales.minimum(at, scale));
          }
        }
      }
    }
  }
}

// Multiplies R rows by a block, and adds to their sums. Types whose bytes and scales are read alike share it.
template <typename Dot, bool Halves, bool PerGroup, bool Minimum, int64_t R>
void add_block(const LinearInputRows& x, int64_t row, int64_t first, int64_t groups, int32_t offset,
               const Block<Halves>& block, float (*to)[kTiles][kTileOutputs]) {
  constexpr int64_t kParts = Block<Halves>::kParts;
  const int64_t x_groups = x.stride / kInputGroup;
  const int8_t* value = x.value + row * x.stride + first * kInputGroup;
  const float* x_scale = x.scale + row * x_groups + first;
  const GroupSums x_sums = (Halves ? x.half_sums : x.sums).from((row * x_groups + first) * kParts);
  int32_t starts[R][kGroups * kParts];  // take the offset of all weights away
  for (int64_t r = 0; r < R; ++r) {
    for (int64_t i = 0; i < groups * kParts; ++i) {
      starts[r][i] = offset * x_sums.value[r * x_groups * kParts + i];
    }
  }
  Floats sums[R][kTiles];
#pragma GCC unroll 8
  for (int64_t r = 0; r < R; ++r) {
#pragma GCC unroll 4
    for (int64_t tile = 0; tile < kTiles; ++tile) {
      sums[r][tile] = load_floats(to[r][tile]);
    }
  }
  for (int64_t group = 0; group < groups; ++group) {
#pragma GCC unroll 2
    for (int64_t part = 0; part < kParts; ++part) {
      Ints dots[R][kTiles];
#pragma GCC unroll 8
      for (int64_t r = 0; r < R; ++r) {
        const Ints start = broadcast(starts[r][group * kParts + part]);
#pragma GCC unroll 4
        for (int64_t tile = 0; tile < kTiles; ++tile) {
          dots[r][tile] = start;
        }
      }
#pragma GCC unroll 8
      for (int64_t i = 0; i < kQuads / kParts; ++i) {
        const int64_t quad = part * kQuads / kParts + i;
        Bytes weights[kTiles];
#pragma GCC unroll 4
        for (int64_t tile = 0; tile < kTiles; ++tile) {
          weights[tile] = load_bytes(block.weights[group][quad][tile]);
        }
#pragma GCC unroll 8
        for (int64_t r = 0; r < R; ++r) {
          const int32_t inputs = load_quad(value + r * x.stride + group * kInputGroup + 4 * quad);
#pragma GCC unroll 4
          for (int64_t tile = 0; tile < kTiles; ++tile) {
            dots[r][tile] = Dot::dot(dots[r][tile], weights[tile], inputs);
          }
        }
      }
#pragma GCC unroll 4
      for (int64_t tile = 0; tile < kTiles; ++tile) {
        const Floats weight_scale = load_floats(block.scale[group][part][tile]);
        const Floats minimum = load_floats(block.minimum[group][part][tile]);
#pragma GCC unroll 8
        for (int64_t r = 0; r < R; ++r) {
          const float by = x_scale[r * x_groups + group];
          if constexpr (PerGroup) {
            sums[r][tile] = multiply_add(dots[r][tile], scale(weight_scale, by), sums[r][tile]);
          } else {
            sums[r][tile] = multiply_add(dots[r][tile], by, sums[r][tile]);
          }
          if constexpr (Minimum) {
            const float sum = x_sums.scaled[(r * x_groups + group) * kParts + part];
            sums[r][tile] = multiply_add(minimum, sum, sums[r][tile]);
          }
        }
      }
    }
  }
#pragma GCC unroll 8
  for (int64_t r = 0; r < R; ++r) {
#pragma GCC unroll 4
    for (int64_t tile = 0; tile < kTiles; ++tile) {
      store(to[r][tile], sums[r][tile]);
    }
  }
}

// Multiplies at most kMostSums rows by up to kTiles tiles.
template <typename Values, typename Scales, bool Minimum>
void multiply_some_rows(const LinearInputRows& x, const LinearArgs& args, int64_t row, int64_t rows, int64_t begin,
                        int64_t end) {
  const Matrix& matrix = args.weight;
  const int64_t groups = x.stride / kInputGroup;
  Block<Scales::kHalves> block;
  RowSums sums;
  for (int64_t r = 0; r < rows; ++r) {
    for (int64_t tile = 0; tile < kTiles; ++tile) {
      store(sums.at[r][tile], zeros());
    }
  }
  for (int64_t first = 0; first < groups; first += kGroups) {
    const int64_t count = groups - first < kGroups ? groups - first : kGroups;
    for (int64_t tile = 0; tile < kTiles; ++tile) {
      // Computes the last tile in place of a missing one, too.
      unpack<Values, Scales>(matrix, begin + tile < end ? begin + tile : end - 1, first, count, tile, block);
    }
    for_row_blocks<kBlockRows>(rows, [&]<int64_t R>(int64_t r) {
      add_block<typename Values::Dot, Scales::kHalves, Scales::kPerGroup, Minimum, R>(
          x, row + r, first, count, -Values::offset(matrix), block, sums.at + r);
    });
  }
  for (int64_t r = 0; r < rows; ++r) {
    for (int64_t tile = begin; tile < end; ++tile) {
      float* values = sums.at[r][tile - begin];
      if constexpr (!Scales::kPerGroup) {
        store(values, multiply(load_floats(values), Scales(matrix, tile).all()));
      }
      write_tile(args, row + r, tile, values);
    }
  }
}

template <typename Values, typename Scales, bool Minimum>
void multiply_rows(const LinearInputRows& x, const LinearArgs& args, int64_t begin, int64_t end) {
  for (int64_t tile = begin; tile < end; tile += kTiles) {
    const int64_t last = tile + kTiles < end ? tile + kTiles : end;
    for (int64_t row = 0; row < args.rows; row += kMostSums) {
      const int64_t rows = args.rows - row < kMostSums ? args.rows - row : kMostSums;
      multiply_some_rows<Values, Scales, Minimum>(x, args, row, rows, tile, last);
    }
  }
}

template <typename Values, bool Halves>
void multiply_any(const LinearInputRows& x, const LinearArgs& args, int64_t begin, int64_t end) {
  args.weight.origin == Origin::middle ? multiply_rows<Values, AnyScales<Halves>, false>(x, args, begin, end)
                                       : multiply_rows<Values, AnyScales<Halves>, true>(x, args, begin, end);
}

}  // namespace

void linear_blocks_kernel(const LinearInputRows& x, const LinearArgs& args, int64_t begin, int64_t end) {
  const Matrix& matrix = args.weight;
  const bool halves = matrix.group == kHalfGroup;
  const bool by_channel = matrix.group == 0 && matrix.origin == Origin::middle && matrix.scale_type == DType::float32;
  switch (matrix.type) {
    case MatrixType::int8:
      return by_channel ? multiply_rows<Int8, ChannelScales, false>(x, args, begin, end)
                        : multiply_any<Int8, false>(x, args, begin, end);
    case MatrixType::int6:
      return halves ? multiply_any<Int6, true>(x, args, begin, end) : multiply_any<Int6, false>(x, args, begin, end);
    default:
      return halves ? multiply_any<Int4, true>(x, args, begin, end) : multiply_any<Int4, false>(x, args, begin, end);
  }
}

}  // namespace dlf::ops::DLF_CPU
