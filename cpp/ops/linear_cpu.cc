#include <ATen/cpu/vec/functional.h>
#include <ATen/cpu/vec/vec.h>

#ifdef __AVX512BF16__
#include <immintrin.h>
#endif

#include "ops/linear.h"

// float32 and bfloat16 weights, which lie row by row.
namespace dlf::ops::DLF_CPU {
namespace {

using Vec = at::vec::Vectorized<float>;

inline float sum(const Vec& vector) {
  return at::vec::vec_reduce_all<float>([](Vec a, Vec b) { return a + b; }, vector);
}

// Two sums of products, of the even and of the odd vectors, so that additions don't wait for each other. step() is how
// many inputs one addition takes, and its weights are kBytes long.
struct Float32 {
  using Element = float;
  static const Element* input(const LinearInputRows& x) { return x.x; }
  static float value(Element element) { return element; }

  struct Operand {
    Vec parts[2];
    explicit Operand(const Element* from) : parts{Vec::loadu(from), Vec::loadu(from + Vec::size())} {}
  };
  static constexpr int64_t kStep = 2 * Vec::size();

  struct Sum {
    Vec parts[2] = {Vec(0.0F), Vec(0.0F)};
    void add(const Operand& weight, const Operand& x) {
      parts[0] = at::vec::fmadd(x.parts[0], weight.parts[0], parts[0]);
      parts[1] = at::vec::fmadd(x.parts[1], weight.parts[1], parts[1]);
    }
    float total() const { return sum(parts[0] + parts[1]); }
  };
};

struct BFloat16 : Float32 {
  using Element = uint16_t;
  static const Element* input(const LinearInputRows& x) { return x.bfloat16; }
  static float value(Element element) { return static_cast<float>(c10::BFloat16(element, c10::BFloat16::from_bits())); }

#ifdef __AVX512BF16__
  struct Operand {
    __m512i parts[2];
    explicit Operand(const Element* from) : parts{_mm512_loadu_si512(from), _mm512_loadu_si512(from + 32)} {}
  };
  static constexpr int64_t kStep = 64;

  struct Sum {
    __m512 parts[2] = {_mm512_setzero_ps(), _mm512_setzero_ps()};
    void add(const Operand& weight, const Operand& x) {
      for (int part = 0; part < 2; ++part) {
        parts[part] = _mm512_dpbf16_ps(parts[part], reinterpret_cast<__m512bh>(weight.parts[part]),
                                       reinterpret_cast<__m512bh>(x.parts[part]));
      }
    }
    float total() const { return _mm512_reduce_add_ps(_mm512_add_ps(parts[0], parts[1])); }
  };
#else
  struct Operand {
    Vec parts[2];
    explicit Operand(const Element* from) : parts{} {
      const auto values = at::vec::Vectorized<c10::BFloat16>::loadu(from);
      std::tie(parts[0], parts[1]) = at::vec::convert_bfloat16_float(values);
    }
  };

  struct Sum : Float32::Sum {
    void add(const Operand& weight, const Operand& x) {
      parts[0] = at::vec::fmadd(x.parts[0], weight.parts[0], parts[0]);
      parts[1] = at::vec::fmadd(x.parts[1], weight.parts[1], parts[1]);
    }
  };
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
      const typename Type::Operand weight(w + c * in + i);
      for (int64_t byte = 0; byte < kBytes; byte += 64) {
        __builtin_prefetch(reinterpret_cast<const char*>(w + c * in + i) + C * kAhead + byte);
      }
      for (int64_t r = 0; r < R; ++r) {
        sums[r][c].add(weight, typename Type::Operand(x + r * in + i));
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
    int64_t row = 0;
    for (; row + 4 <= args.rows; row += 4) {
      dot_outputs<Type, 4>(x, args, row, first, last);
    }
    switch (args.rows - row) {
      case 3:
        dot_outputs<Type, 3>(x, args, row, first, last);
        break;
      case 2:
        dot_outputs<Type, 2>(x, args, row, first, last);
        break;
      case 1:
        dot_outputs<Type, 1>(x, args, row, first, last);
        break;
      default:
        break;
    }
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
