#pragma once

#include <cstdint>

#include "fusion/cuda/solver.h"
#include "sampling/cuda/sampler.h"
#include "support/cuda/stream.h"

// What a GPU knows of the sequences that it decodes, so that it goes from token to token without asking the host.
namespace dlf::cuda {

inline constexpr int kMaxModels = 33;  // and lanes: a large one, 16 experts, 16 bases
inline constexpr int kMaxStops = 256;  // stop token ids of a sequence
inline constexpr int kRing = 4;        // steps whose results the host need not have read yet
inline constexpr int kStepDraft = 7;   // tokens of a sequence that a step drafts at most: 8 rows read a weight together
inline constexpr int kStepTokens = kStepDraft + 1;  // that a step gives a sequence at most

// Where the rows of one model find their tokens and positions: of each sequence's last token, then of what is drafted
// after it, token by token, as Decoder::decode has them.
struct ModelRows {
  int32_t* tokens;     // [max_tokens]
  int32_t* positions;  // [max_tokens * lanes]; −1: idle
  int lanes;
};

// In device memory, an entry for each sequence.
struct SequenceTable {
  int32_t* active;      // 1 while it decodes
  int32_t* step;        // tokens chosen so far
  int32_t* limit;       // tokens after which it ends
  int32_t* max_draft;   // tokens that it lets a step draft
  RowRule* rules;       // how its experts are fused
  int32_t* stop_count;  //
  int32_t* stops;       // [max_batch, kMaxStops]
  ModelRows models[kMaxModels];
  int model_count;
  int max_batch;
  int max_context;
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

// Pinned host memory that the device writes and the host reads a step or two later. A record without a result ends the
// tokens of a sequence.
struct Ring {
  StepRecord* records;  // [kRing, max_batch, kStepTokens]
  int32_t* top_tokens;  // [kRing, max_batch, kStepTokens, top_capacity]
  float* top_logprobs;
  int64_t* done;  // steps whose records are complete
};

// What a step drafts, in device memory: entry j * batch + s is of sequence s, j tokens after its last one.
struct DraftTable {
  int32_t* tokens;    // [kStepDraft * batch]
  int32_t* wanted;    // likewise: whether the token that comes there is to be known
  int32_t* accepted;  // [batch]
};

struct AdvanceArgs {
  SequenceTable table;
  DraftTable draft;
  const SampleRecord* samples;  // [count * batch]
  const int32_t* top_tokens;    // [count * batch, top_capacity]
  const float* top_logprobs;
  const FusionRecord* fusions;  // [count * batch], or null without experts
  int experts;
  int top_capacity;
  int batch;
  int count;        // drafted tokens of each sequence; 0: its next token, which was sampled
  bool ends_step;   // nothing of this step comes after it
  int64_t* ticket;  // steps done; in device memory
  Ring ring;
};

// Writes what was sampled to the host's ring and ends sequences that are complete. A next token becomes the input of
// the next forward pass. Drafted tokens have been read by it already: of each sequence those are accepted that were
// sampled, up to the first that was not.
void advance(const AdvanceArgs& args, Stream stream);

// After advance(): the positions of `count` more tokens of each sequence, and what is wanted of them.
void begin_draft(const SequenceTable& table, const DraftTable& draft, int batch, int count, Stream stream);

// Makes drafted tokens, from the first-th on, the input of forward passes: what was sampled, or, where `samples` is
// null, what the table has.
void feed_draft(const SequenceTable& table, const DraftTable& draft, const SampleRecord* samples, int batch, int first,
                int count, Stream stream);

// Puts the logits after the last token that was accepted where those of a sequence's last token are.
struct KeepArgs {
  const int32_t* active;
  const int32_t* accepted;
  float* logits;  // [(count + 1) * batch * lanes, vocab]
  int64_t vocab;
  int lanes;
  int batch;
};
void keep_logits(const KeepArgs& args, Stream stream);

// A sequence whose prompt is in the caches: its first token comes with the next step.
struct StartArgs {
  SequenceTable table;
  int slot;
  int32_t limit;
  int32_t max_draft;
  RowRule rule;
  int32_t length[kMaxModels];  // of the prompt, for each lane of each model in turn; 0: the lane isn't used
  int32_t stop_count;
  int32_t stops[kMaxStops];
};
void start_sequence(const StartArgs& args, Stream stream);

// Ends a sequence from outside.
void stop_sequence(const SequenceTable& table, int slot, Stream stream);

}  // namespace dlf::cuda
