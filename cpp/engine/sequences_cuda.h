#pragma once

#include <cstdint>

#include "fusion/solver_cuda.h"
#include "sampling/sampler_cuda.h"
#include "support/cuda/stream.h"

// What a GPU knows of the sequences that it decodes, so that it goes from token to token without asking the host.
namespace dlf::cuda {

inline constexpr int kMaxModels = 33;  // and lanes: a large one, 16 experts, 16 bases
inline constexpr int kMaxStops = 256;  // stop token ids of a sequence
inline constexpr int kRing = 4;        // steps whose results the host need not have read yet

// Where the rows of one model find their tokens and positions.
struct ModelRows {
  int32_t* tokens;     // [max_batch]
  int32_t* positions;  // [max_batch * lanes]; −1: idle
  int lanes;
};

// In device memory, an entry for each sequence.
struct SequenceTable {
  int32_t* active;      // 1 while it decodes
  int32_t* step;        // tokens chosen so far
  int32_t* limit;       // tokens after which it ends
  uint32_t* chosen;     // bit t: expert t is fused
  int32_t* stop_count;  //
  int32_t* stops;       // [max_batch, kMaxStops]
  ModelRows models[kMaxModels];
  int model_count;
};

enum class StepResult : int32_t { none, token, stop, length, bad_logits, bad_sample };

// What a step gave one sequence.
struct StepRecord {
  StepResult result;
  int32_t token;
  float logprob;
  int32_t failure;  // a SampleFailure, or FusionRecord::bad_model
  int32_t top_count;
  float f;
  float g;
  float alpha[16];
};

// Pinned host memory that the device writes and the host reads a step or two later.
struct Ring {
  StepRecord* records;  // [kRing, max_batch]
  int32_t* top_tokens;  // [kRing, max_batch, top_capacity]
  float* top_logprobs;
  int64_t* done;  // steps whose records are complete
};

struct AdvanceArgs {
  SequenceTable table;
  const SampleRecord* samples;  // [max_batch]
  const int32_t* top_tokens;    // [max_batch, top_capacity]
  const float* top_logprobs;
  const FusionRecord* fusions;  // [max_batch], or null without experts
  int experts;
  int top_capacity;
  int max_batch;
  int rows;
  int64_t* ticket;  // steps begun; in device memory
  Ring ring;
};

// The end of a step: writes what was sampled to the host's ring, ends sequences that are complete, and makes the
// others' tokens the input of the next forward pass.
void advance(const AdvanceArgs& args, Stream stream);

// A sequence whose prompt is in the caches: its first token comes with the next step.
struct StartArgs {
  SequenceTable table;
  int row;
  int32_t limit;
  uint32_t chosen;
  int32_t length[kMaxModels];  // of the prompt, for each lane of each model in turn; 0: the lane isn't used
  int32_t stop_count;
  int32_t stops[kMaxStops];
};
void start_sequence(const StartArgs& args, Stream stream);

// Ends a sequence from outside.
void stop_sequence(const SequenceTable& table, int row, Stream stream);

}  // namespace dlf::cuda
