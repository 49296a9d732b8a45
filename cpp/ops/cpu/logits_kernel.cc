#include <ATen/cpu/vec/vec.h>

#include "ops/cpu/logits.h"

namespace dlf::ops::DLF_CPU {

void logits_kernel(const LogitArgs& args, int64_t begin, int64_t end) {
  using Vec = at::vec::Vectorized<float>;
  for (int64_t i = begin; i < end; i += Vec::size()) {
    const int64_t count = end - i < Vec::size() ? end - i : Vec::size();
    Vec y = Vec::loadu(args.y + i, count) * Vec(args.multiplier);
    if (args.softcap > 0.0F) {
      y = (y / Vec(args.softcap)).tanh() * Vec(args.softcap);
    }
    y.store(args.y + i, static_cast<int>(count));
  }
}

}  // namespace dlf::ops::DLF_CPU
