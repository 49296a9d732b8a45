#include "model/expert_buffers.h"

#include <ATen/ops/empty.h>

namespace dlf {
namespace {

constexpr int64_t kRunIntegers = sizeof(ops::ExpertRun) / sizeof(int32_t);

// Places and rows of pairs, their experts, the runs and their number.
int64_t integer_count(int64_t pairs, int64_t runs) { return 3 * pairs + kRunIntegers * runs + 1; }

}  // namespace

ExpertBuffers::ExpertBuffers(const ModelSpec& spec, int64_t rows, int64_t runs, const at::TensorOptions& like)
    : pairs_(rows * spec.experts.chosen), runs_(runs) {
  const at::TensorOptions floats = like.dtype(at::kFloat);
  logits = at::empty({rows, spec.experts.count}, floats);
  shared = spec.experts.shared_router ? at::empty({rows, 1}, floats) : at::Tensor();
  integers = at::empty({integer_count(pairs_, runs_)}, like.dtype(at::kInt));
  weights = at::empty({pairs_}, floats);
  gated = at::empty({pairs_, spec.experts.size}, like);
  products = at::empty({pairs_, spec.hidden_size}, floats);
}

ops::Routes ExpertBuffers::routes() const {
  auto* const data = integers.mutable_data_ptr<int32_t>();
  return {data,
          weights.mutable_data_ptr<float>(),
          data + pairs_,
          data + 2 * pairs_,
          reinterpret_cast<ops::ExpertRun*>(data + 3 * pairs_),
          data + 3 * pairs_ + kRunIntegers * runs_};
}

int64_t ExpertBuffers::bytes(const ModelSpec& spec, int64_t rows, int64_t runs, int64_t activation_bytes) {
  const int64_t pairs = rows * spec.experts.chosen;
  const int64_t logits = rows * (spec.experts.count + (spec.experts.shared_router ? 1 : 0));
  return 4 * (logits + integer_count(pairs, runs) + pairs * (1 + spec.hidden_size)) +
         pairs * spec.experts.size * activation_bytes;
}

}  // namespace dlf
