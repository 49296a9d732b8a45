#include <ATen/cpu/vec/functional.h>
#include <ATen/cpu/vec/vec.h>

#include "ops/linear.h"

namespace dlf::ops::DLF_CPU {
namespace {

using Vec = at::vec::Vectorized<float>;
constexpr int64_t kOutputs = 4;  // rows of W that are read side by side
constexpr int64_t kRows = 4;     // rows of x that share one reading of W

struct Float32 {
  using Element = float;
  static constexpr int64_t kStep = Vec::size();
  static constexpr int64_t kParts = 1;
  static void load(const Element* from, Vec* parts) { parts[0] = Vec::loadu(from); }
};

struct BFloat16 {
  using Element = c10::BFloat16;
  static constexpr int64_t kStep = 2 * Vec::size();
  static constexpr int64_t kParts = 2;
  static void load(const Element* from, Vec* parts) {
    std::tie(parts[0], parts[1]) = at::vec::convert_bfloat16_float(at::vec::Vectorized<c10::BFloat16>::loadu(from));
  }
};

inline float sum(const Vec& vector) {
  return at::vec::vec_reduce_all<float>([](Vec a, Vec b) { return a + b; }, vector);
}

// Dot products of rows x [R, in] with output channels W [O, in]; each is summed in the same order whatever R and O are.
template <typename Weight, int64_t R, int64_t O>
void dot_block(const LinearArgs& args, int64_t row, int64_t output) {
  using Element = typename Weight::Element;
  const float* x = args.x + row * args.in;
  const Element* w = static_cast<const Element*>(args.weight) + output * args.in;
  Vec sums[R][O];
  for (int64_t r = 0; r < R; ++r) {
    for (int64_t o = 0; o < O; ++o) {
      sums[r][o] = Vec(0.0F);
    }
  }
  int64_t i = 0;
  for (; i + Weight::kStep <= args.in; i += Weight::kStep) {
    Vec weights[O][Weight::kParts];
    for (int64_t o = 0; o < O; ++o) {
      Weight::load(w + o * args.in + i, weights[o]);
    }
    for (int64_t r = 0; r < R; ++r) {
      for (int64_t part = 0; part < Weight::kParts; ++part) {
        const Vec values = Vec::loadu(x + r * args.in + i + part * Vec::size());
        for (int64_t o = 0; o < O; ++o) {
          sums[r][o] = at::vec::fmadd(values, weights[o][part], sums[r][o]);
        }
      }
    }
  }
  for (int64_t r = 0; r < R; ++r) {
    for (int64_t o = 0; o < O; ++o) {
      float total = sum(sums[r][o]);
      for (int64_t j = i; j < args.in; ++j) {
        total += x[r * args.in + j] * static_cast<float>(w[o * args.in + j]);
      }
      total += args.bias ? args.bias[output + o] : 0.0F;
      float& y = args.y[(row + r) * args.out + output + o];
      y = args.accumulate ? y + total : total;
    }
  }
}

template <typename Weight, int64_t R>
void dot_outputs(const LinearArgs& args, int64_t row, int64_t begin, int64_t end) {
  int64_t output = begin;
  for (; output + kOutputs <= end; output += kOutputs) {
    dot_block<Weight, R, kOutputs>(args, row, output);
  }
  for (; output < end; ++output) {
    dot_block<Weight, R, 1>(args, row, output);
  }
}

template <typename Weight>
void dot_rows(const LinearArgs& args, int64_t begin, int64_t end) {
  // A few output channels at a time stay in cache while all blocks of rows use them.
  constexpr int64_t kTile = 64;
  for (int64_t tile = begin; tile < end; tile += kTile) {
    const int64_t tile_end = tile + kTile < end ? tile + kTile : end;
    int64_t row = 0;
    for (; row + kRows <= args.rows; row += kRows) {
      dot_outputs<Weight, kRows>(args, row, tile, tile_end);
    }
    switch (args.rows - row) {
      case 3:
        dot_outputs<Weight, 3>(args, row, tile, tile_end);
        break;
      case 2:
        dot_outputs<Weight, 2>(args, row, tile, tile_end);
        break;
      case 1:
        dot_outputs<Weight, 1>(args, row, tile, tile_end);
        break;
      default:
        break;
    }
  }
}

}  // namespace

void linear_kernel(const LinearArgs& args, int64_t begin, int64_t end) {
  if (args.dtype == DType::float32) {
    dot_rows<Float32>(args, begin, end);
  } else {
    dot_rows<BFloat16>(args, begin, end);
  }
}

}  // namespace dlf::ops::DLF_CPU
