#include "engine/cuda/sequence_memory.h"

#include <ATen/ops/zeros.h>

#include <algorithm>
#include <atomic>

namespace dlf::cuda {

static_assert(kMaxStops == kMaxStopTokens);

SequenceMemory::SequenceMemory(const EngineOptions& options, const Parts& parts, Queue& queue) {
  const auto take = [&]<typename T>(T*& data, int64_t count) {
    const int64_t bytes = count * static_cast<int64_t>(sizeof(T));
    memory_.push_back(at::zeros({bytes}, on_device(queue.device()).dtype(at::kByte)));
    data = static_cast<T*>(memory_.back().mutable_data_ptr());
  };
  const auto take_pinned = [&]<typename T>(T*& data, int64_t count) {
    memory_.push_back(pinned({count * static_cast<int64_t>(sizeof(T))}, at::kByte));
    data = static_cast<T*>(memory_.back().mutable_data_ptr());
  };
  const int64_t batch = options.max_batch;
  SequenceTable& table = args_.table;
  queue.run([&] {
    take(table.active, batch);
    take(table.step, batch);
    take(table.limit, batch);
    take(table.max_draft, batch);
    take(table.rules, batch);
    take(table.stop_count, batch);
    take(table.stops, batch * kMaxStops);
    take(args_.draft.tokens, parts.max_tokens);
    take(args_.draft.wanted, parts.max_tokens);
    take(args_.draft.accepted, batch);
    take(args_.ticket, 1);
    take(args_.own_tokens, parts.max_tokens);
  });
  const int64_t records = kRing * batch * kStepTokens;
  take_pinned(args_.ring.records, records);
  take_pinned(args_.ring.top_tokens, records * parts.top_capacity);
  take_pinned(args_.ring.top_logprobs, records * parts.top_capacity);
  take_pinned(args_.ring.done, 1);
  take_pinned(args_.ring.drafted, batch * kStepDraft);
  take_pinned(args_.ring.drafts_shown, 1);
  *args_.ring.done = *args_.ring.drafts_shown = 0;
  table.model_count = static_cast<int>(parts.models.size());
  std::copy(parts.models.begin(), parts.models.end(), table.models);
  table.max_batch = static_cast<int>(batch);
  table.max_context = static_cast<int>(options.max_context);
  args_.samples = parts.sampler.records();
  args_.top_tokens = parts.sampler.top_tokens();
  args_.top_logprobs = parts.sampler.top_logprobs();
  args_.fusions = parts.fusions;
  args_.experts = parts.experts;
  args_.top_capacity = parts.top_capacity;
}

void SequenceMemory::advance(int batch, int count, bool traced, bool ends_step, Stream stream) const {
  AdvanceArgs args = args_;
  args.batch = batch;
  args.count = count;
  args.traced = traced;
  args.ends_step = ends_step;
  cuda::advance(args, stream);
}

void SequenceMemory::show_draft(int batch, int count, Stream stream) const {
  cuda::show_draft({args_.draft, args_.ticket, args_.ring, batch, count}, stream);
}

int64_t SequenceMemory::drafts_shown() const {
  return std::atomic_ref<int64_t>(*args_.ring.drafts_shown).load(std::memory_order_acquire);
}

int64_t SequenceMemory::steps_done() const {
  return std::atomic_ref<int64_t>(*args_.ring.done).load(std::memory_order_acquire);
}

SequenceMemory::Given SequenceMemory::given(int64_t step, int64_t slot, int token) const {
  const int64_t at = (step % kRing * args_.table.max_batch + slot) * kStepTokens + token;
  const StepRecord& record = args_.ring.records[at];
  const auto top = static_cast<size_t>(record.top_count);
  return {record,
          {args_.ring.top_tokens + at * args_.top_capacity, top},
          {args_.ring.top_logprobs + at * args_.top_capacity, top}};
}

}  // namespace dlf::cuda
