#include "engine/sequences_cuda.h"
#include "support/cuda/launch.h"

namespace dlf::cuda {
namespace {

__device__ void set_positions(const SequenceTable& table, int row, int32_t position) {
  for (int m = 0; m < table.model_count; ++m) {
    const ModelRows& model = table.models[m];
    for (int lane = 0; lane < model.lanes; ++lane) {
      model.positions[row * model.lanes + lane] = position;
    }
  }
}

__device__ StepResult result_of(const AdvanceArgs& args, int row) {
  const SampleRecord& sample = args.samples[row];
  if (args.fusions != nullptr && args.table.chosen[row] != 0 && args.fusions[row].bad_model != kNoBadModel) {
    return StepResult::bad_logits;
  }
  if (sample.failure != SampleFailure::none) {
    return StepResult::bad_sample;
  }
  const SequenceTable& table = args.table;
  for (int i = 0; i < table.stop_count[row]; ++i) {
    if (table.stops[row * kMaxStops + i] == sample.token) {
      return StepResult::stop;
    }
  }
  return table.step[row] + 1 >= table.limit[row] ? StepResult::length : StepResult::token;
}

__device__ void write_record(const AdvanceArgs& args, int row, int64_t slot, StepResult result) {
  const SampleRecord& sample = args.samples[row];
  StepRecord record = {};
  record.result = result;
  record.token = sample.token;
  record.logprob = sample.logprob;
  record.failure = static_cast<int32_t>(sample.failure);
  record.top_count = sample.top_count;
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
  const int64_t at = slot * args.max_batch + row;
  args.ring.records[at] = record;
  for (int i = 0; i < sample.top_count; ++i) {
    args.ring.top_tokens[at * args.top_capacity + i] = args.top_tokens[row * args.top_capacity + i];
    args.ring.top_logprobs[at * args.top_capacity + i] = args.top_logprobs[row * args.top_capacity + i];
  }
}

__device__ void feed_back(const SequenceTable& table, int row, int32_t token) {
  for (int m = 0; m < table.model_count; ++m) {
    const ModelRows& model = table.models[m];
    model.tokens[row] = token;
    for (int lane = 0; lane < model.lanes; ++lane) {
      int32_t& position = model.positions[row * model.lanes + lane];
      position += position >= 0 ? 1 : 0;
    }
  }
}

// One block, a thread for each sequence.
__global__ void advance_kernel(AdvanceArgs args) {
  const int64_t ticket = *args.ticket;
  const int row = static_cast<int>(threadIdx.x);
  if (row < args.rows) {
    const int64_t slot = ticket % kRing;
    if (args.table.active[row] == 0) {
      args.ring.records[slot * args.max_batch + row].result = StepResult::none;
    } else {
      const StepResult result = result_of(args, row);
      write_record(args, row, slot, result);
      ++args.table.step[row];
      if (result == StepResult::token) {
        feed_back(args.table, row, args.samples[row].token);
      } else {
        args.table.active[row] = 0;
        set_positions(args.table, row, -1);
      }
    }
  }
  __threadfence_system();  // the records are there before the host is told so
  __syncthreads();
  if (threadIdx.x == 0) {
    *args.ticket = ticket + 1;
    *static_cast<volatile int64_t*>(args.ring.done) = ticket + 1;
  }
}

__global__ void start_kernel(StartArgs args) {
  const SequenceTable& table = args.table;
  const int row = args.row;
  table.active[row] = 1;
  table.step[row] = 0;
  table.limit[row] = args.limit;
  table.chosen[row] = args.chosen;
  table.stop_count[row] = args.stop_count;
  for (int i = 0; i < args.stop_count; ++i) {
    table.stops[row * kMaxStops + i] = args.stops[i];
  }
  int next = 0;
  for (int m = 0; m < table.model_count; ++m) {
    const ModelRows& model = table.models[m];
    for (int lane = 0; lane < model.lanes; ++lane) {
      // One less: the first token moves it on before it is used.
      model.positions[row * model.lanes + lane] = args.length[next++] - 1;
    }
  }
}

__global__ void stop_kernel(SequenceTable table, int row) {
  table.active[row] = 0;
  set_positions(table, row, -1);
}

}  // namespace

void advance(const AdvanceArgs& args, Stream stream) {
  const int warps = (args.rows + 31) / 32;
  launch(advance_kernel, {dim3(1), dim3(32 * warps)}, stream, args);
}

void start_sequence(const StartArgs& args, Stream stream) { launch(start_kernel, {dim3(1), dim3(1)}, stream, args); }

void stop_sequence(const SequenceTable& table, int row, Stream stream) {
  launch(stop_kernel, {dim3(1), dim3(1)}, stream, table, row);
}

}  // namespace dlf::cuda
