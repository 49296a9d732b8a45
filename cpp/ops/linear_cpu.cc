#include <ATen/cpu/vec/functional.h>
#include <ATen/cpu/vec/vec.h>

#ifdef __AVX512BF16__
#include <immintrin.h>
#endif

#include "ops/linear.h"
#include "ops/rounding.h"
#include "ops/row_blocks.h"

// float32 and bfloat16 weights, which lie row by row.
namespace dlf::ops::DLF_CPU {
namespace {

using Vec = at::vec::Vectorized<float>;

inline float sum(const Vec& vector) {
  return at::vec::vec_reduce_all<float>([](Vec a, Vec b) { return a + b; }, vector);
}

// Two neighbouring vectors, and a sum of products for each, so that additions don't wait for each other.
struct Pair {
  Vec parts[2];
};

struct PairSum {
  Vec parts[2] = {Vec(0.0F), Vec(0.0F)};

  void add(const Pair& weight, const Pair& x) {
    parts[0] = at::vec::fmadd(x.parts[0], weight.parts[0], parts[0]);
    parts[1] = at::vec::fmadd(x.parts[1], weight.parts[1], parts[1]);
  }
  float total() const { return sum(parts[0] + parts[1]); }
};

// How one type of weights is multiplied, kStep inputs at a time.
struct Float32 {
  using Element = float;
  using Sum = PairSum;
  static constexpr int64_t kStep = 2 * Vec::size();

  static const Element* input(const LinearInputRows& x) { return x.x; }
  static float value(Element element) { return element; }
  static Pair load(const Element* from) { return {Vec::loadu(from), Vec::loadu(from + Vec::size())}; }
};

#ifdef __AVX512BF16__
struct BFloat16Pair {
  __m512i parts[2];
};

struct BFloat16Sum {
  __m512 parts[2] = {_mm512_setzero_ps(), _mm512_setzero_ps()};

  void add(const BFloat16Pair& weight, const BFloat16Pair& x) {
    for (int part = 0; part < 2; ++part) {
      parts[part] = _mm512_dpbf16_ps(parts[part], reinterpret_cast<__m512bh>(weight.parts[part]),
                                     reinterpret_cast<__m512bh>(x.parts[part]));
    }
  }
  float total() const { return _mm512_reduce_add_ps(_mm512_add_ps(parts[0], parts[1])); }
};
#endif

struct BFloat16 {
  using Element = uint16_t;
  static const Element* input(const LinearInputRows& x) { return x.bfloat16; }
  static float value(Element element) { return from_bfloat16(element); }

#ifdef __AVX512BF16__
  using Sum = BFloat16Sum;
  static constexpr int64_t kStep = 64;

  static BFloat16Pair load(const Element* from) { return {_mm512_loadu_si512(from), _mm512_loadu_si512(from + 32)}; }
#else
  using Sum = PairSum;
  static constexpr int64_t kStep = 2 * Vec::size();

  static Pair load(const Element* from) {
    const auto [low, high] = at::vec::convert_bfloat16_float(at::vec::Vectorized<c10::BFloat16>::loadu(from));
    return {low, high};
  }
#endif
};

// Dot products of R rows of x with C neighbouring output channels. Each is summed in the same order whatever R and C.
template <typename Type, int64_t R, int64_t C>
void dot(const LinearInputRows& input, const LinearArgs& args, int64_t row, int64_t output) {
  using Element = typename Type::Element;
  constexpr int64_t kAhead = 4096;  // bytes of W that are on their way: the processor alone stops at each 4 KB page
  constexpr int64_t kBytes = Type::kStep * static_cast<int64_t>(sizeof(Element));
  const int64_t in = args.weight.in;
  const Element* x = Type::input(input) + row * in;
  const Element* w = static_cast<const Element*>(args.weight.data) + output * in;
  typename Type::Sum sums[R][C];
  int64_t i = 0;
  for (; i + Type::kStep <= in; i += Type::kStep) {
    for (int64_t c = 0; c < C; ++c) {
      const auto weight = Type::load(w + c * in + i);
      for (int64_t byte = 0; byte < kBytes; byte += 64) {
        __builtin_prefetch(reinterpret_cast<const char*>(w + c * in + i) + C * kAhead + byte);
      }
      for (int64_t r = 0; r < R; ++r) {
        sums[r][c].add(weight, Type::load(x + r * in + i));
      }
    }
  }
  for (int64_t r = 0; r < R; ++r) {
    for (int64_t c = 0; c < C; ++c) {
      float total = sums[r][c].total();
      for (int64_t j = i; j < in; ++j) {
        total += Type::value(x[r * in + j]) * Type::value(w[c * in + j]);
      }
      total += args.bias ? args.bias[output + c] : 0.0F;
      float& y = args.y[(row + r) * args.weight.out + output + c];
      y = args.accumulate ? y + total : total;
    }
  }
}

// One or two rows read memory fastest as one stream; for more, arithmetic counts, and two channels share the loads of
// x.
template <typename Type, int64_t R>
void dot_outputs(const LinearInputRows& x, const LinearArgs& args, int64_t row, int64_t begin, int64_t end) {
  constexpr int64_t C = R > 2 ? 2 : 1;
  int64_t output = begin;
  for (; output + C <= end; output += C) {
    dot<Type, R, C>(x, args, row, output);
  }
  for (; output < end; ++output) {
    dot<Type, R, 1>(x, args, row, output);
  }
}

template <typename Type>
void dot_rows(const LinearInputRows& x, const LinearArgs& args, int64_t begin, int64_t end) {
  // A tile of output channels stays in cache while all blocks of rows use it.
  for (int64_t tile = begin; tile < end; ++tile) {
    const int64_t first = tile * kTileOutputs;
    const int64_t last = first + kTileOutputs < args.weight.out ? first + kTileOutputs : args.weight.out;
    for_row_blocks<4>(args.rows, [&]<int64_t R>(int64_t row) { dot_outputs<Type, R>(x, args, row, first, last); });
  }
}

}  // namespace

void linear_kernel(const LinearInputRows& x, const LinearArgs& args, int64_t begin, int64_t end) {
  if (args.weight.type == MatrixType::float32) {
    dot_rows<Float32>(x, args, begin, end);
  } else {
    dot_rows<BFloat16>(x, args, begin, end);
  }
}

}  // namespace dlf::ops::DLF_CPU
