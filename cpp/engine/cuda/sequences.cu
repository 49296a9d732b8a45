#include "engine/cuda/sequences.h"
#include "support/cuda/launch.h"

namespace dlf::cuda {
namespace {

// A token of the large model as the model's own id; −1 stays.
__device__ int32_t own_id(const ModelRows& model, int32_t token) {
  return model.feed == nullptr || token < 0 ? token : model.feed[token];
}

__device__ void set_positions(const SequenceTable& table, int sequence, int32_t position) {
  for (int m = 0; m < table.model_count; ++m) {
    const ModelRows& model = table.models[m];
    for (int lane = 0; lane < model.lanes; ++lane) {
      model.positions[sequence * model.lanes + lane] = position;
    }
  }
}

// Result of a sampled row, which is one of `sequence`.
__device__ StepResult result_of(const AdvanceArgs& args, int sequence, int row) {
  const SampleRecord& sample = args.samples[row];
  const SequenceTable& table = args.table;
  if (args.fusions != nullptr && table.rules[sequence].chosen != 0 && args.fusions[row].bad_model != kNoBadModel) {
    return StepResult::bad_logits;
  }
  if (sample.failure != SampleFailure::none) {
    return StepResult::bad_sample;
  }
  for (int i = 0; i < table.stop_count[sequence]; ++i) {
    if (table.stops[sequence * kMaxStops + i] == sample.token) {
      return StepResult::stop;
    }
  }
  return table.step[sequence] + 1 >= table.limit[sequence] ? StepResult::length : StepResult::token;
}

__device__ int64_t place_of(const AdvanceArgs& args, int64_t step, int sequence, int token) {
  return ((step % kRing) * args.table.max_batch + sequence) * kStepTokens + token;
}

__device__ void write_record(const AdvanceArgs& args, int row, int64_t place, StepResult result) {
  const SampleRecord& sample = args.samples[row];
  StepRecord record = {};
  record.result = result;
  record.token = sample.token;
  record.logprob = sample.logprob;
  record.failure = static_cast<int32_t>(sample.failure);
  record.top_count = sample.top_count;
  record.own_token = args.traced ? args.own_tokens[row] : -1;
  if (args.fusions != nullptr) {
    const FusionRecord& fusion = args.fusions[row];
    record.f = fusion.f;
    record.g = fusion.g;
    for (int t = 0; t < args.experts; ++t) {
      record.alpha[t] = fusion.alpha[t];
    }
    if (result == StepResult::bad_logits) {
      record.failure = fusion.bad_model;
    }
  }
  args.ring.records[place] = record;
  for (int i = 0; i < sample.top_count; ++i) {
    args.ring.top_tokens[place * args.top_capacity + i] = args.top_tokens[row * args.top_capacity + i];
    args.ring.top_logprobs[place * args.top_capacity + i] = args.top_logprobs[row * args.top_capacity + i];
  }
}

// Moves the sequence's positions by `by`. A lane whose context is full becomes idle: only a drafter's does, since the
// others end their sequence.
__device__ void move_positions(const SequenceTable& table, int sequence, int32_t by) {
  for (int m = 0; m < table.model_count; ++m) {
    const ModelRows& model = table.models[m];
    for (int lane = 0; lane < model.lanes; ++lane) {
      int32_t& position = model.positions[sequence * model.lanes + lane];
      const bool idle = position < 0 || position + by >= table.max_context;
      position = idle ? -1 : position + by;
    }
  }
}

// Tells the host of a token, and ends the sequence if it was the last one.
__device__ void take(const AdvanceArgs& args, int64_t step, int sequence, int row, int token, StepResult result) {
  write_record(args, row, place_of(args, step, sequence, token), result);
  ++args.table.step[sequence];
  if (result != StepResult::token) {
    args.table.active[sequence] = 0;
    set_positions(args.table, sequence, -1);
  }
}

// Takes the sequence's next token, which no model has read. Returns how many tokens of this step the host knows.
__device__ int take_next(const AdvanceArgs& args, int64_t step, int sequence) {
  if (args.table.active[sequence] == 0) {
    set_positions(args.table, sequence, -1);  // a smaller batch may have had its further tokens here
    return 0;
  }
  const StepResult result = result_of(args, sequence, sequence);
  take(args, step, sequence, sequence, 0, result);
  if (result == StepResult::token) {
    for (int m = 0; m < args.table.model_count; ++m) {
      const ModelRows& model = args.table.models[m];
      model.tokens[sequence] = own_id(model, args.samples[sequence].token);
    }
    move_positions(args.table, sequence, 1);
  }
  return 1;
}

// Takes the drafted tokens that were right. A row that failed is not: the next step finds its failure and tells the
// host. Returns how many tokens of this step the host knows.
__device__ int take_drafted(const AdvanceArgs& args, int64_t step, int sequence) {
  int count = 0;
  while (count < args.count && args.table.active[sequence] != 0) {
    const int row = count * args.batch + sequence;
    const StepResult result = result_of(args, sequence, row);
    const bool failed = result == StepResult::bad_logits || result == StepResult::bad_sample;
    if (args.draft.wanted[row] == 0 || failed || args.samples[row].token != args.draft.tokens[row]) {
      break;
    }
    take(args, step, sequence, row, 1 + count, result);
    ++count;
  }
  args.draft.accepted[sequence] = count;
  move_positions(args.table, sequence, count);
  return 1 + count;
}

// One block, with a thread for each sequence.
__global__ void advance_kernel(AdvanceArgs args) {
  const int64_t step = *args.ticket;
  const int sequence = static_cast<int>(threadIdx.x);
  if (sequence < args.batch) {
    const int told = args.count == 0 ? take_next(args, step, sequence) : take_drafted(args, step, sequence);
    if (told < kStepTokens) {
      args.ring.records[place_of(args, step, sequence, told)].result = StepResult::none;
    }
  }
  if (!args.ends_step) {
    return;
  }
  __threadfence_system();  // the host must see the records before it sees that they are complete
  __syncthreads();
  if (threadIdx.x == 0) {
    *args.ticket = step + 1;
    *static_cast<volatile int64_t*>(args.ring.done) = step + 1;
  }
}

// One block.
__global__ void keep_own_tokens_kernel(const SampleRecord* samples, int32_t* own_tokens, int rows) {
  for (int row = static_cast<int>(threadIdx.x); row < rows; row += static_cast<int>(blockDim.x)) {
    own_tokens[row] = samples[row].failure == SampleFailure::none ? samples[row].token : -1;
  }
}

// A block for each drafted token, and one for the position after the last; in each, a thread for each sequence.
__global__ void begin_draft_kernel(SequenceTable table, DraftTable draft, int batch, int count) {
  const int sequence = static_cast<int>(threadIdx.x);
  const int ahead = static_cast<int>(blockIdx.x);  // of the last token
  if (sequence >= batch) {
    return;
  }
  const bool goes_on = table.active[sequence] != 0 && table.step[sequence] + ahead < table.limit[sequence];
  const int row = ahead * batch + sequence;
  if (ahead < count) {
    draft.wanted[row] = goes_on && ahead < table.max_draft[sequence] ? 1 : 0;
  }
  if (ahead == 0) {
    return;  // the last token's position is known
  }
  for (int m = 0; m < table.model_count; ++m) {
    const ModelRows& model = table.models[m];
    for (int lane = 0; lane < model.lanes; ++lane) {
      const int32_t last = model.positions[sequence * model.lanes + lane];
      const bool read = goes_on && ahead <= table.max_draft[sequence] && last >= 0 && last + ahead < table.max_context;
      model.positions[row * model.lanes + lane] = read ? last + ahead : -1;
    }
  }
}

// One block.
__global__ void show_draft_kernel(ShowDraftArgs args) {
  for (int i = static_cast<int>(threadIdx.x); i < args.count * args.batch; i += static_cast<int>(blockDim.x)) {
    args.ring.drafted[i] = args.draft.tokens[i];
  }
  __threadfence_system();  // the host must see the tokens before it sees that they are shown
  __syncthreads();
  if (threadIdx.x == 0) {
    *static_cast<volatile int64_t*>(args.ring.drafts_shown) = *args.ticket + 1;
  }
}

__global__ void feed_draft_kernel(SequenceTable table, DraftTable draft, const SampleRecord* samples, int batch,
                                  int first) {
  const int sequence = static_cast<int>(threadIdx.x);
  const int row = (first + static_cast<int>(blockIdx.x)) * batch + sequence;
  if (sequence >= batch) {
    return;
  }
  if (samples != nullptr) {
    draft.tokens[row] = table.active[sequence] != 0 ? samples[sequence].token : -1;
  }
  for (int m = 0; m < table.model_count; ++m) {
    const ModelRows& model = table.models[m];
    model.tokens[batch + row] = own_id(model, draft.tokens[row]);
  }
}

// A block for each row of a sequence but the first; in each, a thread for each sequence.
__global__ void feed_unread_kernel(FeedUnreadArgs args) {
  const int sequence = static_cast<int>(threadIdx.x);
  const int before = 1 + static_cast<int>(blockIdx.x);  // the last token
  if (sequence >= args.batch) {
    return;
  }
  const SequenceTable& table = args.table;
  const int row = before * args.batch + sequence;
  const bool read = table.active[sequence] != 0 && before < args.unread;
  const int32_t* history = args.sampler.history + sequence * args.sampler.history_stride;
  const int32_t token = read ? history[args.sampler.rows[sequence].history_length - 1 - before] : -1;
  for (int m = 0; m < table.model_count; ++m) {
    const ModelRows& model = table.models[m];
    if (!model.small) {
      continue;
    }
    model.tokens[row] = own_id(model, token);
    for (int lane = 0; lane < model.lanes; ++lane) {
      const int32_t last = model.positions[sequence * model.lanes + lane];
      model.positions[row * model.lanes + lane] = read && last >= 0 ? last - before : -1;
    }
  }
}

__global__ void keep_logits_kernel(KeepArgs args) {
  const int row = static_cast<int>(blockIdx.y);
  const int sequence = row / args.lanes;
  const int accepted = args.accepted[sequence];
  if (args.active[sequence] == 0 || accepted == 0) {
    return;
  }
  const float* from = args.logits + (static_cast<int64_t>(accepted) * args.batch * args.lanes + row) * args.vocab;
  float* to = args.logits + row * args.vocab;
  const auto stride = static_cast<int64_t>(gridDim.x * blockDim.x);
  for (int64_t i = blockIdx.x * blockDim.x + threadIdx.x; i < args.vocab; i += stride) {
    to[i] = from[i];
  }
}

__global__ void start_kernel(StartArgs args) {
  const SequenceTable& table = args.table;
  const int slot = args.slot;
  table.active[slot] = 1;
  table.step[slot] = args.step;
  table.limit[slot] = args.limit;
  table.max_draft[slot] = args.max_draft;
  table.rules[slot] = args.rule;
  table.stop_count[slot] = args.stop_count;
  for (int i = 0; i < args.stop_count; ++i) {
    table.stops[slot * kMaxStops + i] = args.stops[i];
  }
  int next = 0;
  for (int m = 0; m < table.model_count; ++m) {
    const ModelRows& model = table.models[m];
    for (int lane = 0; lane < model.lanes; ++lane) {
      // One less, since the first token moves it on before it is used.
      model.positions[slot * model.lanes + lane] = args.length[next++] - 1;
    }
  }
}

__global__ void stop_kernel(SequenceTable table, int slot) {
  table.active[slot] = 0;
  set_positions(table, slot, -1);
}

// A thread for each sequence, in whole warps.
unsigned threads_for(int batch) { return 32 * ((static_cast<unsigned>(batch) + 31) / 32); }

}  // namespace

void advance(const AdvanceArgs& args, Stream stream) {
  launch(advance_kernel, {dim3(1), dim3(threads_for(args.batch))}, stream, args);
}

void keep_own_tokens(const SampleRecord* samples, int32_t* own_tokens, int rows, Stream stream) {
  launch(keep_own_tokens_kernel, {dim3(1), dim3(256)}, stream, samples, own_tokens, rows);
}

void begin_draft(const SequenceTable& table, const DraftTable& draft, int batch, int count, Stream stream) {
  const auto blocks = static_cast<unsigned>(count + 1);
  launch(begin_draft_kernel, {dim3(blocks), dim3(threads_for(batch))}, stream, table, draft, batch, count);
}

void feed_draft(const SequenceTable& table, const DraftTable& draft, const SampleRecord* samples, int batch, int first,
                int count, Stream stream) {
  const auto blocks = static_cast<unsigned>(count);
  launch(feed_draft_kernel, {dim3(blocks), dim3(threads_for(batch))}, stream, table, draft, samples, batch, first);
}

void show_draft(const ShowDraftArgs& args, Stream stream) {
  launch(show_draft_kernel, {dim3(1), dim3(256)}, stream, args);
}

void feed_unread(const FeedUnreadArgs& args, Stream stream) {
  if (args.rows > 1) {
    launch(feed_unread_kernel, {dim3(static_cast<unsigned>(args.rows - 1)), dim3(threads_for(args.batch))}, stream,
           args);
  }
}

void keep_logits(const KeepArgs& args, Stream stream) {
  constexpr int64_t kThreads = 256;
  constexpr int64_t kPerBlock = 8 * kThreads;
  const dim3 grid(static_cast<unsigned>((args.vocab + kPerBlock - 1) / kPerBlock),
                  static_cast<unsigned>(args.batch * args.lanes));
  launch(keep_logits_kernel, {grid, dim3(kThreads)}, stream, args);
}

void start_sequence(const StartArgs& args, Stream stream) { launch(start_kernel, {dim3(1), dim3(1)}, stream, args); }

void stop_sequence(const SequenceTable& table, int slot, Stream stream) {
  launch(stop_kernel, {dim3(1), dim3(1)}, stream, table, slot);
}

}  // namespace dlf::cuda
