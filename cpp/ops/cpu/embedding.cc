#include "ops/embedding.h"

#include <c10/util/BFloat16.h>

#include <algorithm>

namespace dlf::ops {
namespace {

template <typename Element>
void copy_rows(const EmbeddingArgs& args) {
  for (int64_t r = 0; r < args.rows; ++r) {
    const Element* from = static_cast<const Element*>(args.weight) + args.row[r].token * args.size;
    std::copy(from, from + args.size, args.y + r * args.size);
  }
}

}  // namespace

void embedding(const EmbeddingArgs& args) {
  if (args.dtype == DType::float32) {
    copy_rows<float>(args);
  } else {
    copy_rows<c10::BFloat16>(args);
  }
}

}  // namespace dlf::ops
