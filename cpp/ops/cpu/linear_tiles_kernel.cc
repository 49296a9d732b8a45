#include "ops/cpu/linear.h"
#include "ops/cpu/linear_output.h"
#include "ops/cpu/row_blocks.h"
#include "ops/cpu/tile_dot.h"
#include "ops/cpu/tile_scales.h"
#include "ops/cpu/tile_values.h"

// Products of weights in tiles (matrix.h) and a few rows of activations of 8 bits, from the tiles as they are stored.
// The sums of a group of inputs are exact integers, which the scales turn into floats. A row's result does not depend
// on the number of rows.
namespace dlf::ops::DLF_CPU {
namespace {

// Adds the products of one group to the sums of R rows, which share a scale.
template <typename Scales, int64_t R>
void add_group(const Scales& scales, int64_t group, const Ints (&dots)[R], const float* x_scale, int64_t x_groups,
               const float* x_sum, int64_t x_sums, Floats (&sums)[R]) {
  const Floats weight_scale = scales.scale(group);
  for (int64_t r = 0; r < R; ++r) {
    sums[r] = multiply_add(dots[r], scale(weight_scale, x_scale[r * x_groups]), sums[r]);
  }
  if constexpr (!Scales::kPlain) {
    if (scales.has_minimum()) {
      const Floats minimum = scales.minimum(group, weight_scale);
      for (int64_t r = 0; r < R; ++r) {
        sums[r] = multiply_add(minimum, x_sum[r * x_sums], sums[r]);
      }
    }
  }
}

template <typename Values, typename Scales, int64_t R>
void dot_tile(const LinearInputRows& x, const LinearArgs& args, int64_t row, int64_t tile) {
  const Matrix& matrix = args.weight;
  const int64_t groups = x.stride / kInputGroup;
  const char* weights =
      static_cast<const char*>(matrix.data) + tile * (padded_inputs(matrix) / kInputGroup) * Values::kGroupBytes;
  const LinearInputRows rows = x.from(row);
  const int32_t offset = -Values::offset(matrix);
  const Scales scales(matrix, tile);
  Floats sums[R];
  for (int64_t r = 0; r < R; ++r) {
    sums[r] = zeros();
  }
  for (int64_t group = 0; group < groups; ++group) {
    Ints low[R];  // of the group's first half of inputs
    Ints high[R];
    for (int64_t r = 0; r < R; ++r) {
      const int64_t at = r * groups + group;
      const int32_t* sum = Scales::kHalves ? rows.half_sums.value + 2 * at : rows.sums.value + at;
      low[r] = multiply(broadcast(sum[0]), offset);
      high[r] = Scales::kHalves ? multiply(broadcast(sum[1]), offset) : broadcast(0);
    }
    const int8_t* value = rows.value + group * kInputGroup;
    Values::for_quads(weights + group * Values::kGroupBytes, [&]<int Quad>(const Bytes& bytes) {
      for (int64_t r = 0; r < R; ++r) {
        Ints& sum = Quad < kQuads / 2 ? low[r] : high[r];
        sum = Values::Dot::dot(sum, bytes, load_quad(value + r * x.stride + 4 * Quad));
      }
    });
    const float* x_scale = rows.scale + group;
    if constexpr (Scales::kHalves) {
      const float* x_sum = rows.half_sums.scaled + 2 * group;
      add_group(scales, 2 * group, low, x_scale, groups, x_sum, 2 * groups, sums);
      add_group(scales, 2 * group + 1, high, x_scale, groups, x_sum + 1, 2 * groups, sums);
    } else {
      for (int64_t r = 0; r < R; ++r) {
        low[r] = add(low[r], high[r]);
      }
      if constexpr (Scales::kPerGroup) {
        const float* x_sum = rows.sums.scaled + group;
        add_group(scales, scales.group_of(group * kInputGroup), low, x_scale, groups, x_sum, groups, sums);
      } else {
        for (int64_t r = 0; r < R; ++r) {
          sums[r] = multiply_add(low[r], x_scale[r * groups], sums[r]);
        }
      }
    }
  }
  for (int64_t r = 0; r < R; ++r) {
    if constexpr (!Scales::kPerGroup) {
      sums[r] = multiply(sums[r], scales.all());
    }
    float values[kTileOutputs];
    store(values, sums[r]);
    write_tile(args, row + r, tile, values);
  }
}

template <typename Values, typename Scales>
void dot_rows(const LinearInputRows& x, const LinearArgs& args, int64_t begin, int64_t end) {
  for (int64_t tile = begin; tile < end; ++tile) {
    for_row_blocks<kMostRows>(args.rows,
                              [&]<int64_t R>(int64_t row) { dot_tile<Values, Scales, R>(x, args, row, tile); });
  }
}

}  // namespace

void linear_tiles_kernel(const LinearInputRows& x, const LinearArgs& args, int64_t begin, int64_t end) {
  const Matrix& matrix = args.weight;
  const bool plain = matrix.origin == Origin::middle && matrix.block == 0;
  const bool halves = matrix.group == kHalfGroup;
  switch (matrix.type) {
    case MatrixType::int8:
      return plain && matrix.group == 0 && matrix.scale_type == DType::float32
                 ? dot_rows<Int8, ChannelScales>(x, args, begin, end)
                 : dot_rows<Int8, AnyScales<false>>(x, args, begin, end);
    case MatrixType::int6:
      return halves ? dot_rows<Int6, AnyScales<true>>(x, args, begin, end)
                    : dot_rows<Int6, AnyScales<false>>(x, args, begin, end);
    default:
      return plain && matrix.group >= kInputGroup && matrix.scale_type == DType::bfloat16
                 ? dot_rows<Int4, BFloat16Scales>(x, args, begin, end)
             : halves ? dot_rows<Int4, AnyScales<true>>(x, args, begin, end)
                      : dot_rows<Int4, AnyScales<false>>(x, args, begin, end);
  }
}

}  // namespace dlf::ops::DLF_CPU
