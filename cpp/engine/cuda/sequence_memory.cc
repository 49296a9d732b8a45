#include "engine/cuda/sequence_memory.h"

#include <ATen/ops/zeros.h>

#include <algorithm>
#include <atomic>

namespace dlf::cuda {

static_assert(kMaxStops == kMaxStopTokens);

SequenceMemory::SequenceMemory(int max_batch, int max_tokens, int top_capacity, Queue& queue)
    : max_batch_(max_batch), top_capacity_(top_capacity) {
  queue.run([&] {
    const auto integers = on_device(queue.device()).dtype(at::kInt);
    active_ = at::zeros({max_batch}, integers);
    step_ = at::zeros({max_batch}, integers);
    limit_ = at::zeros({max_batch}, integers);
    max_draft_ = at::zeros({max_batch}, integers);
    rules_ = at::zeros({max_batch * static_cast<int64_t>(sizeof(RowRule))}, on_device(queue.device()).dtype(at::kByte));
    stop_count_ = at::zeros({max_batch}, integers);
    stops_ = at::zeros({max_batch, kMaxStops}, integers);
    ticket_ = at::zeros({1}, on_device(queue.device()).dtype(at::kLong));
    draft_tokens_ = at::zeros({max_tokens}, integers);
    draft_wanted_ = at::zeros({max_tokens}, integers);
    accepted_ = at::zeros({max_batch}, integers);
  });
  const int64_t places = int64_t{kRing} * max_batch * kStepTokens;
  records_ = pinned({places * static_cast<int64_t>(sizeof(StepRecord))}, at::kByte);
  top_tokens_ = pinned({places, top_capacity}, at::kInt);
  top_logprobs_ = pinned({places, top_capacity}, at::kFloat);
  done_ = pinned({1}, at::kLong);
  *done_.mutable_data_ptr<int64_t>() = 0;
}

SequenceTable SequenceMemory::table(std::span<const ModelRows> models) {
  SequenceTable table = {};
  table.active = active_.mutable_data_ptr<int32_t>();
  table.step = step_.mutable_data_ptr<int32_t>();
  table.limit = limit_.mutable_data_ptr<int32_t>();
  table.max_draft = max_draft_.mutable_data_ptr<int32_t>();
  table.rules = static_cast<RowRule*>(rules_.mutable_data_ptr());
  table.stop_count = stop_count_.mutable_data_ptr<int32_t>();
  table.stops = stops_.mutable_data_ptr<int32_t>();
  table.model_count = static_cast<int>(models.size());
  std::copy(models.begin(), models.end(), table.models);
  table.max_batch = max_batch_;
  return table;
}

DraftTable SequenceMemory::draft() {
  return {draft_tokens_.mutable_data_ptr<int32_t>(), draft_wanted_.mutable_data_ptr<int32_t>(),
          accepted_.mutable_data_ptr<int32_t>()};
}

void SequenceMemory::advance(const SequenceTable& table, const Sampled& sampled, int batch, int count, bool ends_step,
                             Stream stream) {
  AdvanceArgs args = {};
  args.table = table;
  args.draft = draft();
  args.samples = sampled.sampler.records();
  args.top_tokens = sampled.sampler.top_tokens();
  args.top_logprobs = sampled.sampler.top_logprobs();
  args.fusions = sampled.fusions;
  args.experts = sampled.experts;
  args.top_capacity = top_capacity_;
  args.batch = batch;
  args.count = count;
  args.ends_step = ends_step;
  args.ticket = ticket_.mutable_data_ptr<int64_t>();
  args.ring = {static_cast<StepRecord*>(records_.mutable_data_ptr()), top_tokens_.mutable_data_ptr<int32_t>(),
               top_logprobs_.mutable_data_ptr<float>(), done_.mutable_data_ptr<int64_t>()};
  cuda::advance(args, stream);
}

int64_t SequenceMemory::steps_done() const {
  return std::atomic_ref<int64_t>(*static_cast<int64_t*>(done_.data_ptr())).load(std::memory_order_acquire);
}

const StepRecord& SequenceMemory::record(int64_t step, int row, int token) const {
  return static_cast<const StepRecord*>(records_.const_data_ptr())[place(step, row, token)];
}

std::span<const int32_t> SequenceMemory::top_tokens(int64_t step, int row, int token) const {
  return {top_tokens_.const_data_ptr<int32_t>() + place(step, row, token) * top_capacity_,
          static_cast<size_t>(record(step, row, token).top_count)};
}

std::span<const float> SequenceMemory::top_logprobs(int64_t step, int row, int token) const {
  return {top_logprobs_.const_data_ptr<float>() + place(step, row, token) * top_capacity_,
          static_cast<size_t>(record(step, row, token).top_count)};
}

}  // namespace dlf::cuda
