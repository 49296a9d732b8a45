#include "ops/cpu/linear.h"
#include "ops/cpu/row_blocks.h"
#include "ops/cpu/tile_dot.h"

// Products of weights in tiles (matrix.h) and activations of 8 bits. The sums of a group of 32
// inputs are exact integers, which the scales turn into floats. A row's result does not depend on the number of rows.
namespace dlf::ops::DLF_CPU {
namespace {

constexpr int64_t kAhead = 4096;  // bytes of W to prefetch
constexpr int64_t kQuads = kInputGroup / 4;

inline int32_t load_quad(const int8_t* from) {
  int32_t quad;
  __builtin_memcpy(&quad, from, 4);
  return quad;
}

// Each type of values adds the products of one group of inputs, a register of weights at a time, to two sums of R rows:
// even and odd ones, or those of the group's two halves.
struct Int8 {
  static constexpr bool kHalves = false;
  static constexpr int64_t kGroupBytes = kInputGroup * kTileOutputs;

  static int32_t offset(const Matrix&) { return kInt8Offset; }

  template <int64_t R>
  static void dot(const char* weights, const int8_t* x, int64_t stride, Ints (&even)[R], Ints (&odd)[R]) {
#pragma GCC unroll 4
    for (int64_t quad = 0; quad < kQuads; quad += 2) {
      __builtin_prefetch(weights + quad * 64 + kAhead);
      __builtin_prefetch(weights + quad * 64 + 64 + kAhead);
      const Bytes first = load_bytes(weights + quad * 64);
      const Bytes second = load_bytes(weights + quad * 64 + 64);
      for (int64_t r = 0; r < R; ++r) {
        even[r] = dot_signed(even[r], first, load_quad(x + r * stride + 4 * quad));
        odd[r] = dot_signed(odd[r], second, load_quad(x + r * stride + 4 * quad + 4));
      }
    }
  }
};

struct Int4 {
  static constexpr bool kHalves = true;
  static constexpr int64_t kGroupBytes = kInputGroup * kTileOutputs / 2;

  static int32_t offset(const Matrix& matrix) { return matrix.origin == Origin::middle ? 8 : 0; }

  template <int64_t R>
  static void dot(const char* weights, const int8_t* x, int64_t stride, Ints (&low)[R], Ints (&high)[R]) {
#pragma GCC unroll 2
    for (int64_t pair = 0; pair < kQuads / 4; ++pair) {
      dot_pair<R>(weights + pair * 64, x + 8 * pair, stride, low);
      dot_pair<R>(weights + (pair + 2) * 64, x + 8 * pair + kHalfGroup, stride, high);
    }
  }

 private:
  template <int64_t R>
  static void dot_pair(const char* weights, const int8_t* x, int64_t stride, Ints (&sums)[R]) {
    __builtin_prefetch(weights + kAhead);
    const Bytes both = load_bytes(weights);
    const Bytes first = low_halves(both);
    const Bytes second = high_halves(both);
    for (int64_t r = 0; r < R; ++r) {
      sums[r] = dot_unsigned(sums[r], first, load_quad(x + r * stride));
      sums[r] = dot_unsigned(sums[r], second, load_quad(x + r * stride + 4));
    }
  }
};

struct Int6 {
  static constexpr bool kHalves = true;
  static constexpr int64_t kGroupBytes = kInputGroup * kTileOutputs * 6 / 8;

  static int32_t offset(const Matrix& matrix) { return matrix.origin == Origin::middle ? 32 : 0; }

  template <int64_t R>
  static void dot(const char* weights, const int8_t* x, int64_t stride, Ints (&low)[R], Ints (&high)[R]) {
    for (int64_t line = 0; line < kGroupBytes; line += 64) {
      __builtin_prefetch(weights + line + kAhead);
    }
    const Bytes top[2] = {load_bytes(weights + 4 * 64), load_bytes(weights + 5 * 64)};
    dot_quad<0, R>(weights, top[0], x, stride, low, high);
    dot_quad<1, R>(weights, top[0], x, stride, low, high);
    dot_quad<2, R>(weights, top[1], x, stride, low, high);
    dot_quad<3, R>(weights, top[1], x, stride, low, high);
  }

 private:
  template <int Quad, int64_t R>
  static void dot_quad(const char* weights, const Bytes& top, const int8_t* x, int64_t stride, Ints (&low)[R],
                       Ints (&high)[R]) {
    constexpr int kPlace = Quad % 2 * 4;
    const Bytes both = load_bytes(weights + Quad * 64);
    const Bytes first = with_high_bits<kPlace>(low_halves(both), top);
    const Bytes second = with_high_bits<kPlace + 2>(high_halves(both), top);
    for (int64_t r = 0; r < R; ++r) {
      low[r] = dot_unsigned(low[r], first, load_quad(x + r * stride + 4 * Quad));
      high[r] = dot_unsigned(high[r], second, load_quad(x + r * stride + 4 * Quad + kHalfGroup));
    }
  }
};

// One float32 scale for each channel.
class ChannelScales {
 public:
  static constexpr bool kPerGroup = false;

  ChannelScales(const Matrix& matrix, int64_t tile)
      : scale_(static_cast<const float*>(matrix.scale) + tile * kTileOutputs) {}

  Floats all() const { return load_floats(scale_); }

 private:
  const float* scale_;
};

// A bfloat16 scale for each group of at least kInputGroup.
class BFloat16Scales {
 public:
  static constexpr bool kPerGroup = true;
  static constexpr bool kPlain = true;  // no minimum, no halves

  BFloat16Scales(const Matrix& matrix, int64_t tile)
      : scale_(static_cast<const uint16_t*>(matrix.scale) + tile * groups(matrix) * kTileOutputs),
        group_(matrix.group) {}

  int64_t group_of(int64_t input) const { return input / group_; }
  Floats scale(int64_t group) const { return load_bfloat16(scale_ + group * kTileOutputs); }

 private:
  const uint16_t* scale_;
  int64_t group_;
};

// Scales and minimums of any type that matrix.h describes.
class AnyScales {
 public:
  static constexpr bool kPerGroup = true;
  static constexpr bool kPlain = false;

  AnyScales(const Matrix& matrix, int64_t tile)
      : matrix_(matrix),
        first_(tile * groups(matrix)),
        first_block_(matrix.block > 0 ? tile * (padded_inputs(matrix) / matrix.block) : 0),
        shift_(shift_of(matrix.group)),
        block_shift_(matrix.block > 0 ? shift_of(matrix.block) - shift_ : 0) {}

  bool halves() const { return matrix_.group == kHalfGroup; }
  bool has_minimum() const { return matrix_.origin != Origin::middle; }
  int64_t group_of(int64_t input) const { return input >> shift_; }
  Floats scale(int64_t group) const { return load(matrix_.scale, matrix_.block_scale, group); }
  // What to add to the products of x, for each unit of Σx.
  Floats minimum(int64_t group, const Floats& scale) const {
    return matrix_.origin == Origin::zero ? multiply(load_int8(static_cast<const int8_t*>(matrix_.minimum) + at(group)),
                                                     ops::DLF_CPU::scale(scale, -1.0F))
                                          : load(matrix_.minimum, matrix_.block_minimum, group);
  }

 private:
  int64_t at(int64_t group) const { return (first_ + group) * kTileOutputs; }

  Floats load(const void* from, const void* blocks, int64_t group) const {
    if (blocks != nullptr) {
      const int64_t block = first_block_ + (group >> block_shift_);
      return multiply(load_int8(static_cast<const int8_t*>(from) + at(group)),
                      load_float16(static_cast<const uint16_t*>(blocks) + block * kTileOutputs));
    }
    switch (matrix_.scale_type) {
      case DType::float32:
        return load_floats(static_cast<const float*>(from) + at(group));
      case DType::bfloat16:
        return load_bfloat16(static_cast<const uint16_t*>(from) + at(group));
      default:
        return load_float16(static_cast<const uint16_t*>(from) + at(group));
    }
  }

  const Matrix& matrix_;
  int64_t first_;
  int64_t first_block_;
  int shift_;
  int block_shift_;
};

template <int64_t R>
void write(const LinearArgs& args, int64_t row, int64_t tile, const Floats (&sums)[R]) {
  const int64_t out = args.weight.out;
  const int64_t first = tile * kTileOutputs;
  const int64_t count = out - first < kTileOutputs ? out - first : kTileOutputs;
  for (int64_t r = 0; r < R; ++r) {
    float values[kTileOutputs];
    store(values, sums[r]);
    float* y = static_cast<float*>(args.y) + (row + r) * out + first;
    for (int64_t i = 0; i < count; ++i) {
      const float value = values[i] + (args.bias ? args.bias[first + i] : 0.0F);
      y[i] = args.accumulate ? y[i] + value : value;
    }
  }
}

// Adds the products of one group, or half of one, to the sums of R rows. `half_sum` has those of the first row.
template <int64_t R>
void add_group(const AnyScales& scales, int64_t group, const Ints (&dots)[R], const float* x_scale, int64_t groups,
               const int32_t* half_sum, int64_t halves, Floats (&sums)[R]) {
  const Floats weight_scale = scales.scale(group);
  for (int64_t r = 0; r < R; ++r) {
    sums[r] = multiply_add(dots[r], scale(weight_scale, x_scale[r * groups]), sums[r]);
  }
  if (scales.has_minimum()) {
    const Floats minimum = scales.minimum(group, weight_scale);
    for (int64_t r = 0; r < R; ++r) {
      int32_t sum = 0;
      for (int64_t half = 0; half < halves; ++half) {
        sum += half_sum[r * 2 * groups + half];
      }
      sums[r] = multiply_add(minimum, x_scale[r * groups] * static_cast<float>(sum), sums[r]);
    }
  }
}

template <typename Values, typename Scales, int64_t R>
void dot_tile(const LinearInputRows& x, const LinearArgs& args, int64_t row, int64_t tile) {
  const Matrix& matrix = args.weight;
  const int64_t groups = x.stride / kInputGroup;
  const char* weights =
      static_cast<const char*>(matrix.data) + tile * (padded_inputs(matrix) / kInputGroup) * Values::kGroupBytes;
  const int8_t* value = x.value + row * x.stride;
  const float* x_scale = x.scale + row * groups;
  const int32_t* half_sum = x.half_sum + row * 2 * groups;
  const int32_t offset = -Values::offset(matrix);
  const Scales scales(matrix, tile);
  Floats sums[R];
  for (int64_t r = 0; r < R; ++r) {
    sums[r] = zeros();
  }
  for (int64_t group = 0; group < groups; ++group) {
    Ints even[R];
    Ints odd[R];
    for (int64_t r = 0; r < R; ++r) {
      const int32_t* halves = half_sum + 2 * (r * groups + group);
      even[r] = broadcast(offset * (Values::kHalves ? halves[0] : halves[0] + halves[1]));
      odd[r] = broadcast(Values::kHalves ? offset * halves[1] : 0);
    }
    Values::template dot<R>(weights + group * Values::kGroupBytes, value + group * kInputGroup, x.stride, even, odd);
    if constexpr (!Scales::kPerGroup) {
      for (int64_t r = 0; r < R; ++r) {
        sums[r] = multiply_add(add(even[r], odd[r]), x_scale[r * groups + group], sums[r]);
      }
    } else if constexpr (Scales::kPlain) {
      const Floats weight_scale = scales.scale(scales.group_of(group * kInputGroup));
      for (int64_t r = 0; r < R; ++r) {
        sums[r] = multiply_add(add(even[r], odd[r]), scale(weight_scale, x_scale[r * groups + group]), sums[r]);
      }
    } else if (Values::kHalves && scales.halves()) {
      add_group(scales, 2 * group, even, x_scale + group, groups, half_sum + 2 * group, 1, sums);
      add_group(scales, 2 * group + 1, odd, x_scale + group, groups, half_sum + 2 * group + 1, 1, sums);
    } else {
      for (int64_t r = 0; r < R; ++r) {
        even[r] = add(even[r], odd[r]);
      }
      add_group(scales, scales.group_of(group * kInputGroup), even, x_scale + group, groups, half_sum + 2 * group, 2,
                sums);
    }
  }
  if constexpr (!Scales::kPerGroup) {
    for (int64_t r = 0; r < R; ++r) {
      sums[r] = multiply(sums[r], scales.all());
    }
  }
  write(args, row, tile, sums);
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
  switch (matrix.type) {
    case MatrixType::int8:
      return plain && matrix.group == 0 && matrix.scale_type == DType::float32
                 ? dot_rows<Int8, ChannelScales>(x, args, begin, end)
                 : dot_rows<Int8, AnyScales>(x, args, begin, end);
    case MatrixType::int6:
      return dot_rows<Int6, AnyScales>(x, args, begin, end);
    default:
      return plain && matrix.group >= kInputGroup && matrix.scale_type == DType::bfloat16
                 ? dot_rows<Int4, BFloat16Scales>(x, args, begin, end)
                 : dot_rows<Int4, AnyScales>(x, args, begin, end);
  }
}

}  // namespace dlf::ops::DLF_CPU
