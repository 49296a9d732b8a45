#include "ops/cpu/linear.h"
#include "ops/cpu/linear_output.h"
#include "ops/cpu/row_blocks.h"
#include "ops/cpu/units.h"

// Products of float32 and bfloat16 weights and the rows of a prompt. A block of a few tiles of channels is packed once,
// so that a register holds one unit of neighbouring channels, and stays in the nearest caches while all rows are
// multiplied by it. Each sum takes its inputs in order, whatever the blocks and the number of rows.
namespace dlf::ops::DLF_CPU {
namespace {

constexpr int64_t kMostUnits = 256;  // of a block
constexpr int64_t kMostSums = 264;   // most rows that share a block, whole blocks of rows
constexpr int64_t kSquare = 16;      // units that are packed at once, and channels of a tile
static_assert(kSquare == kTileOutputs);

// Rows and tiles whose sums fill the registers.
constexpr int64_t kMostRows = Vec::size() == 16 ? 8 : 6;
constexpr int64_t kMostTiles = Vec::size() == 16 ? 3 : 1;

struct Block {
  alignas(64) Unit weights[kMostUnits * kMostTiles * kTileOutputs];  // [units, tiles, kTileOutputs]
};

struct RowSums {
  alignas(64) float at[kMostSums * kMostTiles * kTileOutputs];  // [rows, tiles, kTileOutputs]
};

// Channels of the block after this one, which are prefetched while this one is multiplied.
struct Next {
  const char* weights;
  int64_t row_bytes;
  int64_t unit_bytes;
  int64_t channels;

  // The share of one of `count` blocks of rows.
  Next share(int64_t index, int64_t count) const {
    const int64_t begin = channels * index / count;
    return {weights + begin * row_bytes, row_bytes, unit_bytes, channels * (index + 1) / count - begin};
  }
  void prefetch(int64_t unit) const {
    for (int64_t channel = 0; channel < channels; ++channel) {
      __builtin_prefetch(weights + channel * row_bytes + unit * unit_bytes);
    }
  }
};

// The rows of x as units.
template <typename Units>
struct Input {
  const char* data;
  int64_t row_bytes;

  explicit Input(const LinearInputRows& x) {
    if constexpr (Units::kValues == 1) {
      data = reinterpret_cast<const char*>(x.x);
      row_bytes = x.in * static_cast<int64_t>(sizeof(float));
    } else {
      data = reinterpret_cast<const char*>(x.bfloat16);
      row_bytes = x.stride * static_cast<int64_t>(sizeof(uint16_t));
    }
  }
  const char* at(int64_t row, int64_t unit) const {
    return data + row * row_bytes + unit * static_cast<int64_t>(sizeof(Unit));
  }
};

inline Unit load_unit(const char* from) {
  Unit unit;
  __builtin_memcpy(&unit, from, sizeof(Unit));
  return unit;
}

// Packs `units` units, from `first` on, of a tile; zeros stand for channels and inputs that the matrix lacks.
template <typename Units>
void pack(const Matrix& matrix, int64_t tile, int64_t first, int64_t units, int64_t stride, Unit* to) {
  using Element = typename Units::Element;
  constexpr int64_t kElements = kSquare * Units::kValues;
  const auto* weights = static_cast<const Element*>(matrix.data);
  for (int64_t unit = 0; unit < units; unit += kSquare) {
    const int64_t input = (first + unit) * Units::kValues;
    const int64_t left = matrix.in - input;
    alignas(64) Unit square[kSquare][kSquare];
    for (int64_t i = 0; i < kTileOutputs; ++i) {
      const int64_t output = tile * kTileOutputs + i;
      const Element* from = weights + output * matrix.in + input;
      Element padded[kElements] = {};
      if (output >= matrix.out || left < kElements) {
        for (int64_t element = 0; output < matrix.out && element < left && element < kElements; ++element) {
          padded[element] = from[element];
        }
        from = padded;
      }
      Units::join_row(from, kSquare, square[i]);
    }
    at::vec::transpose_mxn<float, kSquare, kSquare>(reinterpret_cast<const float*>(square[0]), kSquare,
                                                    reinterpret_cast<float*>(to + unit * stride), stride);
  }
}

// Adds the products of R rows and a block of T tiles to their sums.
template <typename Units, int64_t T, int64_t R>
void add_block(const Input<Units>& x, int64_t row, int64_t first, int64_t units, const Block& block, const Next& next,
               bool begins, RowSums& rows) {
  constexpr int64_t kRegisters = T * kTileOutputs / Vec::size();
  float* to = rows.at + row * T * kTileOutputs;
  Vec sums[R][kRegisters];
#pragma GCC unroll 8
  for (int64_t r = 0; r < R; ++r) {
#pragma GCC unroll 8
    for (int64_t i = 0; i < kRegisters; ++i) {
      sums[r][i] = begins ? Vec(0.0F) : Vec::loadu(to + (r * kRegisters + i) * Vec::size());
    }
  }
  const char* from = x.at(row, first);
  const Unit* weights = block.weights;
  for (int64_t unit = 0; unit < units;) {
    next.prefetch(unit);
    const int64_t end = unit + kSquare < units ? unit + kSquare : units;
    for (; unit < end; ++unit, from += sizeof(Unit), weights += T * kTileOutputs) {
      typename Units::Register parts[kRegisters];
#pragma GCC unroll 8
      for (int64_t i = 0; i < kRegisters; ++i) {
        parts[i] = Units::load(weights + i * Vec::size());
      }
#pragma GCC unroll 8
      for (int64_t r = 0; r < R; ++r) {
        const typename Units::Register value = Units::broadcast(load_unit(from + r * x.row_bytes));
#pragma GCC unroll 8
        for (int64_t i = 0; i < kRegisters; ++i) {
          sums[r][i] = Units::multiply_add(value, parts[i], sums[r][i]);
        }
      }
    }
  }
#pragma GCC unroll 8
  for (int64_t r = 0; r < R; ++r) {
#pragma GCC unroll 8
    for (int64_t i = 0; i < kRegisters; ++i) {
      sums[r][i].store(to + (r * kRegisters + i) * Vec::size());
    }
  }
}

// Multiplies at most kMostSums rows by T tiles.
template <typename Units, int64_t T>
void multiply_some_rows(const LinearInputRows& x, const LinearArgs& args, int64_t row, int64_t rows, int64_t tile) {
  const Matrix& matrix = args.weight;
  const Input<Units> input(x.from(row));
  const int64_t units = (matrix.in + Units::kValues - 1) / Units::kValues;
  const int64_t parts = (units + kMostUnits - 1) / kMostUnits;
  const int64_t size = round_up((units + parts - 1) / parts, kSquare);
  constexpr auto kElement = static_cast<int64_t>(sizeof(typename Units::Element));
  Next next = {static_cast<const char*>(matrix.data) + tile * kTileOutputs * matrix.in * kElement, matrix.in * kElement,
               Units::kValues * kElement, T * kTileOutputs};
  Block block;
  RowSums sums;
  for (int64_t first = 0; first < units; first += size) {
    const int64_t count = units - first < size ? units - first : size;
    for (int64_t t = 0; t < T; ++t) {
      pack<Units>(matrix, tile + t, first, count, T * kTileOutputs, block.weights + t * kTileOutputs);
    }
    const bool last = first + count == units;
    next.weights += last ? next.channels * next.row_bytes - first * next.unit_bytes : count * next.unit_bytes;
    for_row_blocks<kMostRows>(rows, [&]<int64_t R>(int64_t r) {
      const Next share = next.share(r / kMostRows, (rows + kMostRows - 1) / kMostRows);
      add_block<Units, T, R>(input, r, first, count, block, share, first == 0, sums);
    });
  }
  for (int64_t r = 0; r < rows; ++r) {
    for (int64_t t = 0; t < T; ++t) {
      write_tile(args, row + r, tile + t, sums.at + (r * T + t) * kTileOutputs);
    }
  }
}

template <typename Units>
void multiply(const LinearInputRows& x, const LinearArgs& args, int64_t begin, int64_t end) {
  for_row_blocks<kMostTiles>(
      end,
      [&]<int64_t T>(int64_t tile) {
        for (int64_t row = 0; row < args.rows; row += kMostSums) {
          const int64_t rows = args.rows - row < kMostSums ? args.rows - row : kMostSums;
          multiply_some_rows<Units, T>(x, args, row, rows, tile);
        }
      },
      begin);
}

}  // namespace

void linear_units_kernel(const LinearInputRows& x, const LinearArgs& args, int64_t begin, int64_t end) {
  if (args.weight.type == MatrixType::float32) {
    multiply<Singles<float>>(x, args, begin, end);
  } else {
    multiply<BFloat16Units>(x, args, begin, end);
  }
}

}  // namespace dlf::ops::DLF_CPU
