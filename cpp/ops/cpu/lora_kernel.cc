#include <ATen/cpu/vec/functional.h>
#include <ATen/cpu/vec/vec.h>

#include "ops/cpu/lora.h"
#include "ops/cpu/rounding.h"

namespace dlf::ops::DLF_CPU {
namespace {

using Vec = at::vec::Vectorized<float>;

struct Pair {
  Vec low;
  Vec high;
};

struct Float32 {
  using Element = float;
  static Pair load(const Element* from) { return {Vec::loadu(from), Vec::loadu(from + Vec::size())}; }
  static float value(Element element) { return element; }
};

struct BFloat16 {
  using Element = uint16_t;
  static Pair load(const Element* from) {
    const auto [low, high] = at::vec::convert_bfloat16_float(at::vec::Vectorized<c10::BFloat16>::loadu(from));
    return {low, high};
  }
  static float value(Element element) { return from_bfloat16(element); }
};

// Adds outputs [begin, end) of one row: each sum runs along the rank in order, several outputs side by side.
template <typename Type>
void add_outputs(const LoraUpdate& update, const float* inner, float* y, int64_t begin, int64_t end) {
  using Element = typename Type::Element;
  const auto* b = static_cast<const Element*>(update.b);
  const int64_t rank = update.rank;
  int64_t o = begin;
  for (; o + 2 * Vec::size() <= end; o += 2 * Vec::size()) {
    Pair sum = {Vec(0.0F), Vec(0.0F)};
    for (int64_t r = 0; r < rank; ++r) {
      const Vec weight(inner[r]);
      const Pair outputs = Type::load(b + r * update.out + o);
      sum.low = at::vec::fmadd(weight, outputs.low, sum.low);
      sum.high = at::vec::fmadd(weight, outputs.high, sum.high);
    }
    const Vec scale(update.scale);
    at::vec::fmadd(scale, sum.low, Vec::loadu(y + o)).store(y + o);
    at::vec::fmadd(scale, sum.high, Vec::loadu(y + o + Vec::size())).store(y + o + Vec::size());
  }
  for (; o < end; ++o) {
    float sum = 0.0F;
    for (int64_t r = 0; r < rank; ++r) {
      sum += inner[r] * Type::value(b[r * update.out + o]);
    }
    y[o] += update.scale * sum;
  }
}

template <typename Type>
void add_rows(const LoraRun& run, int64_t begin, int64_t end) {
  const LoraUpdate& update = run.update;
  for (int64_t chunk = begin; chunk < end; ++chunk) {
    const int64_t first = chunk * kLoraOutputs;
    const int64_t last = first + kLoraOutputs < update.out ? first + kLoraOutputs : update.out;
    for (int64_t row = 0; row < run.rows; ++row) {
      add_outputs<Type>(update, run.inner + row * update.rank, run.y + row * update.out, first, last);
    }
  }
}

}  // namespace

void lora_kernel(const LoraRun& run, MatrixType type, int64_t begin, int64_t end) {
  if (type == MatrixType::float32) {
    add_rows<Float32>(run, begin, end);
  } else {
    add_rows<BFloat16>(run, begin, end);
  }
}

}  // namespace dlf::ops::DLF_CPU
