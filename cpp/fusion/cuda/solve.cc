#include "fusion/cuda/solve.h"

#include <ATen/ops/empty.h>
#include <c10/core/impl/VirtualGuardImpl.h>
#include <c10/util/Exception.h>

#include <algorithm>
#include <cstring>
#include <numeric>
#include <vector>

#include "fusion/cuda/solver.h"
#include "support/cuda/runtime.h"

namespace dlf {
namespace {

// Waits for torch's current stream, on which the caller computed the logits.
void wait_for(const at::Tensor& tensor) {
  if (tensor.is_cuda()) {
    const c10::impl::VirtualGuardImpl guard(at::kCUDA);
    guard.getStream(tensor.device()).synchronize();
  }
}

}  // namespace

FusionTensors solve_on_cuda(const at::Tensor& large, const at::Tensor& experts, const at::Tensor& bases,
                            std::span<const Rule> rules, int device) {
  const int64_t batch = large.size(0);
  const int64_t vocab = large.size(1);
  const auto count = static_cast<int>(experts.size(1));
  check_expert_count(count);
  for (const at::Tensor* logits : {&large, &experts, &bases}) {
    wait_for(*logits);
  }
  const at::Device place = cuda::on_device(device).device();
  const at::Tensor fused = at::empty({batch, vocab}, cuda::on_device(device).dtype(at::kFloat));
  const auto bytes = static_cast<int64_t>(batch * sizeof(cuda::FusionRecord));
  const at::Tensor records = at::empty({bytes}, cuda::on_device(device).dtype(at::kByte));
  uint32_t kernels = 0;
  const at::Tensor rows = at::empty({static_cast<int64_t>(rules.size() * sizeof(cuda::RowRule))}, at::kByte);
  std::vector<int> every(count);
  std::iota(every.begin(), every.end(), 0);
  for (size_t i = 0; i < rules.size(); ++i) {
    validate(rules[i], count);
    const cuda::RowRule row = cuda::row_rule(rules[i], every, count);
    std::memcpy(rows.mutable_data_ptr<uint8_t>() + i * sizeof(row), &row, sizeof(row));
    kernels |= row.kernels;
  }
  at::Tensor here;
  cuda::Queue queue(device);
  queue.run([&] {
    const at::Tensor large_there = large.to(place);
    const at::Tensor experts_there = experts.to(place);
    const at::Tensor bases_there = bases.to(place);
    const at::Tensor rules_there = rows.to(place);
    cuda::FusionArgs args = {};
    args.rules = reinterpret_cast<const cuda::RowRule*>(rules_there.const_data_ptr<uint8_t>());
    args.rule_count = static_cast<int>(rules.size());
    args.kernels = kernels;
    args.expert_count = count;
    args.large = {large_there.const_data_ptr<float>(), vocab};
    const int64_t bases_a_row = bases.dim() == 2 ? 1 : count;
    for (int t = 0; t < count; ++t) {
      args.experts[t] = {experts_there.const_data_ptr<float>() + t * vocab, count * vocab};
      args.bases[t] = {bases_there.const_data_ptr<float>() + t % bases_a_row * vocab, bases_a_row * vocab};
    }
    args.fused = fused.mutable_data_ptr<float>();
    args.fused_stride = vocab;
    args.records = reinterpret_cast<cuda::FusionRecord*>(records.mutable_data_ptr<uint8_t>());
    args.rows = static_cast<int>(batch);
    args.vocab = vocab;
    cuda::solve(args, queue.stream());
    queue.synchronize();
    here = records.cpu();
  });

  const auto* found = reinterpret_cast<const cuda::FusionRecord*>(here.const_data_ptr<uint8_t>());
  FusionTensors result(fused, count);
  for (int64_t row = 0; row < batch; ++row) {
    const cuda::FusionRecord& record = found[row];
    std::copy_n(record.alpha, count, result.alpha.mutable_data_ptr<double>() + row * count);
    std::copy_n(record.target_f, count, result.target_f.mutable_data_ptr<double>() + row * count);
    std::copy_n(record.target_g, count, result.target_g.mutable_data_ptr<double>() + row * count);
    result.f.mutable_data_ptr<double>()[row] = record.f;
    result.g.mutable_data_ptr<double>()[row] = record.g;
    result.sweeps.mutable_data_ptr<int64_t>()[row] = record.sweeps;
    result.bad_model.mutable_data_ptr<int64_t>()[row] = record.bad_model;
  }
  return result;
}

}  // namespace dlf
