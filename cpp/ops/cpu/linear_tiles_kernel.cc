#include "ops/cpu/linear.h"
#include "ops/cpu/row_blocks.h"
#include "ops/cpu/tile_dot.h"

// Products of int8 and int4 weights, stored in tiles (matrix.h), and activations of 8 bits. The sums of a group of 32
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

struct Int8 {
  static constexpr int32_t kOffset = kInt8Offset;
  static constexpr bool kGroupScales = false;
  static constexpr int64_t kGroupBytes = kInputGroup * kTileOutputs;

  // sums[r] += the products of one group of inputs, a register of weights at a time.
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
  static constexpr int32_t kOffset = 8;
  static constexpr bool kGroupScales = true;
  static constexpr int64_t kGroupBytes = kInputGroup * kTileOutputs / 2;

  template <int64_t R>
  static void dot(const char* weights, const int8_t* x, int64_t stride, Ints (&even)[R], Ints (&odd)[R]) {
#pragma GCC unroll 4
    for (int64_t pair = 0; pair < kQuads / 2; ++pair) {
      __builtin_prefetch(weights + pair * 64 + kAhead);
      const Bytes both = load_bytes(weights + pair * 64);
      const Bytes first = low_halves(both);
      const Bytes second = high_halves(both);
      for (int64_t r = 0; r < R; ++r) {
        even[r] = dot_unsigned(even[r], first, load_quad(x + r * stride + 8 * pair));
        odd[r] = dot_unsigned(odd[r], second, load_quad(x + r * stride + 8 * pair + 4));
      }
    }
  }
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

template <typename Type, int64_t R>
void dot_tile(const LinearInputRows& x, const LinearArgs& args, int64_t row, int64_t tile) {
  const Matrix& matrix = args.weight;
  const int64_t groups = x.stride / kInputGroup;
  const int64_t padded = padded_inputs(matrix.in, matrix.group);
  const char* weights = static_cast<const char*>(matrix.data) + tile * (padded / kInputGroup) * Type::kGroupBytes;
  const int8_t* value = x.value + row * x.stride;
  const float* x_scale = x.scale + row * groups;
  const int32_t* sum = x.sum + row * groups;
  Floats sums[R];
  for (int64_t r = 0; r < R; ++r) {
    sums[r] = zeros();
  }
  for (int64_t group = 0; group < groups; ++group) {
    Ints even[R];
    Ints odd[R];
    for (int64_t r = 0; r < R; ++r) {
      even[r] = broadcast(-Type::kOffset * sum[r * groups + group]);
      odd[r] = broadcast(0);
    }
    Type::template dot<R>(weights + group * Type::kGroupBytes, value + group * kInputGroup, x.stride, even, odd);
    if constexpr (Type::kGroupScales) {
      const int64_t index = tile * (padded / matrix.group) + group * kInputGroup / matrix.group;
      const Floats weight_scale = load_bfloat16(static_cast<const uint16_t*>(matrix.scale) + index * kTileOutputs);
      for (int64_t r = 0; r < R; ++r) {
        sums[r] = multiply_add(add(even[r], odd[r]), scale(weight_scale, x_scale[r * groups + group]), sums[r]);
      }
    } else {
      for (int64_t r = 0; r < R; ++r) {
        sums[r] = multiply_add(add(even[r], odd[r]), x_scale[r * groups + group], sums[r]);
      }
    }
  }
  if constexpr (!Type::kGroupScales) {
    const Floats channel_scale = load_floats(static_cast<const float*>(matrix.scale) + tile * kTileOutputs);
    for (int64_t r = 0; r < R; ++r) {
      sums[r] = multiply(sums[r], channel_scale);
    }
  }
  write(args, row, tile, sums);
}

template <typename Type>
void dot_rows(const LinearInputRows& x, const LinearArgs& args, int64_t begin, int64_t end) {
  for (int64_t tile = begin; tile < end; ++tile) {
    for_row_blocks<kMostRows>(args.rows, [&]<int64_t R>(int64_t row) { dot_tile<Type, R>(x, args, row, tile); });
  }
}

}  // namespace

void linear_tiles_kernel(const LinearInputRows& x, const LinearArgs& args, int64_t begin, int64_t end) {
  if (args.weight.type == MatrixType::int8) {
    dot_rows<Int8>(x, args, begin, end);
  } else {
    dot_rows<Int4>(x, args, begin, end);
  }
}

}  // namespace dlf::ops::DLF_CPU
