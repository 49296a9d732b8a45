#include <ATen/cpu/vec/functional.h>
#include <ATen/cpu/vec/vec.h>

#ifdef __AVX512BF16__
#include <immintrin.h>
#endif

#include "ops/cpu/linear.h"
#include "ops/cpu/rounding.h"

// Products of a decode step with float32 and bfloat16 weights, which are stored row by row.
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
  static int64_t stride(const LinearInputRows& x) { return x.in; }
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
  static int64_t stride(const LinearInputRows& x) { return x.stride; }
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

// Every dot product is summed in the same order, on both paths and with any number of rows.

// Adds the inputs that make no whole step to a dot product, and writes it.
template <typename Type>
void write(const LinearInputRows& input, const LinearArgs& args, const typename Type::Sum& sum, int64_t row,
           int64_t output) {
  using Element = typename Type::Element;
  const int64_t in = args.weight.in;
  const Element* x = Type::input(input) + row * Type::stride(input);
  const Element* w = static_cast<const Element*>(args.weight.data) + output * in;
  float total = sum.total();
  for (int64_t i = in / Type::kStep * Type::kStep; i < in; ++i) {
    total += Type::value(x[i]) * Type::value(w[i]);
  }
  total += args.bias ? args.bias[output] : 0.0F;
  float& y = static_cast<float*>(args.y)[row * args.weight.out + output];
  y = args.accumulate ? y + total : total;
}

// Multiplies one or two rows, which wait for memory: reads the weights as one stream.
template <typename Type, int64_t R>
void stream(const LinearInputRows& input, const LinearArgs& args, int64_t row, int64_t begin, int64_t end) {
  using Element = typename Type::Element;
  constexpr int64_t kAhead = 4096;  // bytes of W to prefetch: the processor's own prefetch stops at each 4 KB page
  constexpr int64_t kBytes = Type::kStep * static_cast<int64_t>(sizeof(Element));
  const int64_t in = args.weight.in;
  const int64_t stride = Type::stride(input);
  const Element* x = Type::input(input) + row * stride;
  for (int64_t output = begin; output < end; ++output) {
    const Element* w = static_cast<const Element*>(args.weight.data) + output * in;
    typename Type::Sum sums[R];
    for (int64_t i = 0; i + Type::kStep <= in; i += Type::kStep) {
      const auto weight = Type::load(w + i);
      for (int64_t byte = 0; byte < kBytes; byte += 64) {
        __builtin_prefetch(reinterpret_cast<const char*>(w + i) + kAhead + byte);
      }
      for (int64_t r = 0; r < R; ++r) {
        sums[r].add(weight, Type::load(x + r * stride + i));
      }
    }
    for (int64_t r = 0; r < R; ++r) {
      write<Type>(input, args, sums[r], row + r, output);
    }
  }
}

// One of the blocks of rows that share a tile of output channels.
struct Block {
  int64_t row;
  int64_t index;
  int64_t count;
};

// Multiplies more rows, for which arithmetic counts as well. Two channels share the loads of x, and inputs come in
// stretches, so that x stays in the L1 cache. The tile comes from L2: while the blocks of rows work on one tile, each
// prefetches its share of the next.
template <typename Type, int64_t R>
void multiply(const LinearInputRows& input, const LinearArgs& args, const Block& block, int64_t begin, int64_t end) {
  using Element = typename Type::Element;
  using Sum = typename Type::Sum;
  constexpr int64_t kStretch = 4096 / static_cast<int64_t>(sizeof(Element));
  constexpr int64_t kBytes = Type::kStep * static_cast<int64_t>(sizeof(Element));
  constexpr int64_t C = 2;
  static_assert(kTileOutputs % C == 0 && kStretch % Type::kStep == 0);
  const int64_t in = args.weight.in;
  const int64_t whole = in / Type::kStep * Type::kStep;
  const int64_t tile_bytes = kTileOutputs * in * static_cast<int64_t>(sizeof(Element));
  const int64_t stride = Type::stride(input);
  const Element* x = Type::input(input) + block.row * stride;
  Sum sums[kTileOutputs][R];
  for (int64_t first = 0; first < whole; first += kStretch) {
    const int64_t last = first + kStretch < whole ? first + kStretch : whole;
    for (int64_t output = begin; output < end; output += C) {
      const Element* w = static_cast<const Element*>(args.weight.data) + output * in;
      // If the number of channels is odd, the last one is also computed in place of the missing one.
      const int64_t next = output + 1 < end ? in : 0;
      Sum part[C][R];
      for (int64_t c = 0; c < C; ++c) {
        for (int64_t r = 0; r < R; ++r) {
          part[c][r] = sums[output - begin + c][r];
        }
      }
      int64_t turn = block.index;
      for (int64_t i = first; i < last; i += Type::kStep) {
        const bool send = turn == 0;
        turn = send ? block.count - 1 : turn - 1;
        for (int64_t c = 0; c < C; ++c) {
          const auto weight = Type::load(w + c * next + i);
          if (send) {
            for (int64_t byte = 0; byte < kBytes; byte += 64) {
              __builtin_prefetch(reinterpret_cast<const char*>(w + c * next + i) + tile_bytes + byte, 0, 2);
            }
          }
          for (int64_t r = 0; r < R; ++r) {
            part[c][r].add(weight, Type::load(x + r * stride + i));
          }
        }
      }
      for (int64_t c = 0; c < C; ++c) {
        for (int64_t r = 0; r < R; ++r) {
          sums[output - begin + c][r] = part[c][r];
        }
      }
    }
  }
  for (int64_t output = begin; output < end; ++output) {
    for (int64_t r = 0; r < R; ++r) {
      write<Type>(input, args, sums[output - begin][r], block.row + r, output);
    }
  }
}

template <typename Type>
void dot_rows(const LinearInputRows& x, const LinearArgs& args, int64_t begin, int64_t end) {
  constexpr int64_t kMost = 5;  // most rows of a block, whose sums stay in registers
  const int64_t count = (args.rows + kMost - 1) / kMost;
  for (int64_t tile = begin; tile < end; ++tile) {
    const int64_t first = tile * kTileOutputs;
    const int64_t last = first + kTileOutputs < args.weight.out ? first + kTileOutputs : args.weight.out;
    for (int64_t index = 0; index < count; ++index) {
      const Block block = {args.rows * index / count, index, count};
      switch (args.rows * (index + 1) / count - block.row) {
        case 1:
          stream<Type, 1>(x, args, block.row, first, last);
          break;
        case 2:
          stream<Type, 2>(x, args, block.row, first, last);
          break;
        case 3:
          multiply<Type, 3>(x, args, block, first, last);
          break;
        case 4:
          multiply<Type, 4>(x, args, block, first, last);
          break;
        default:
          multiply<Type, kMost>(x, args, block, first, last);
      }
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
