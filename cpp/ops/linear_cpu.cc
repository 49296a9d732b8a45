#include <ATen/cpu/vec/functional.h>
#include <ATen/cpu/vec/vec.h>

#include "ops/linear.h"

namespace dlf::ops::DLF_CPU {
namespace {

using Vec = at::vec::Vectorized<float>;
constexpr int64_t kRows = 4;      // rows of x that share one reading of W
constexpr int64_t kAhead = 4096;  // bytes of W that are on their way: the processor alone stops at each 4 KB page
constexpr int64_t kParts = 2;     // vectors of one step, with a sum each, so that additions don't wait for each other
constexpr int64_t kStep = kParts * Vec::size();

inline void load(const float* from, Vec* parts) {
  parts[0] = Vec::loadu(from);
  parts[1] = Vec::loadu(from + Vec::size());
}

inline void load(const c10::BFloat16* from, Vec* parts) {
  std::tie(parts[0], parts[1]) = at::vec::convert_bfloat16_float(at::vec::Vectorized<c10::BFloat16>::loadu(from));
}

inline float sum(const Vec& vector) {
  return at::vec::vec_reduce_all<float>([](Vec a, Vec b) { return a + b; }, vector);
}

// Dot products of rows x [R, in] with one output channel W [in]: memory is read fastest as one stream. Each is summed
// in the same order whatever R is.
template <typename Element, int64_t R>
void dot(const LinearArgs& args, int64_t row, int64_t output) {
  const float* x = args.x + row * args.in;
  const Element* w = static_cast<const Element*>(args.weight) + output * args.in;
  Vec sums[R][kParts];
  for (int64_t r = 0; r < R; ++r) {
    for (int64_t part = 0; part < kParts; ++part) {
      sums[r][part] = Vec(0.0F);
    }
  }
  int64_t i = 0;
  for (; i + kStep <= args.in; i += kStep) {
    Vec weights[kParts];
    load(w + i, weights);
    __builtin_prefetch(reinterpret_cast<const char*>(w + i) + kAhead);
    for (int64_t r = 0; r < R; ++r) {
      for (int64_t part = 0; part < kParts; ++part) {
        const Vec values = Vec::loadu(x + r * args.in + i + part * Vec::size());
        sums[r][part] = at::vec::fmadd(values, weights[part], sums[r][part]);
      }
    }
  }
  for (int64_t r = 0; r < R; ++r) {
    float total = sum(sums[r][0] + sums[r][1]);
    for (int64_t j = i; j < args.in; ++j) {
      total += x[r * args.in + j] * static_cast<float>(w[j]);
    }
    total += args.bias ? args.bias[output] : 0.0F;
    float& y = args.y[(row + r) * args.out + output];
    y = args.accumulate ? y + total : total;
  }
}

template <typename Element, int64_t R>
void dot_outputs(const LinearArgs& args, int64_t row, int64_t begin, int64_t end) {
  for (int64_t output = begin; output < end; ++output) {
    dot<Element, R>(args, row, output);
  }
}

template <typename Element>
void dot_rows(const LinearArgs& args, int64_t begin, int64_t end) {
  // A few output channels at a time stay in cache while all blocks of rows use them.
  constexpr int64_t kTile = 64;
  for (int64_t tile = begin; tile < end; tile += kTile) {
    const int64_t tile_end = tile + kTile < end ? tile + kTile : end;
    int64_t row = 0;
    for (; row + kRows <= args.rows; row += kRows) {
      dot_outputs<Element, kRows>(args, row, tile, tile_end);
    }
    switch (args.rows - row) {
      case 3:
        dot_outputs<Element, 3>(args, row, tile, tile_end);
        break;
      case 2:
        dot_outputs<Element, 2>(args, row, tile, tile_end);
        break;
      case 1:
        dot_outputs<Element, 1>(args, row, tile, tile_end);
        break;
      default:
        break;
    }
  }
}

}  // namespace

void linear_kernel(const LinearArgs& args, int64_t begin, int64_t end) {
  if (args.dtype == DType::float32) {
    dot_rows<float>(args, begin, end);
  } else {
    dot_rows<c10::BFloat16>(args, begin, end);
  }
}

}  // namespace dlf::ops::DLF_CPU
