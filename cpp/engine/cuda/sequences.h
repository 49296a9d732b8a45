#pragma once

#include <cstdint>

#include "engine/options.h"
#include "fusion/cuda/solver.h"
#include "sampling/cuda/sampler.h"
#include "support/cuda/stream.h"

// State of the sequences that a GPU decodes: it goes from token to token without asking the host.
namespace dlf::cuda {

inline constexpr int kMaxStops = 256;  // stop token ids of a sequence
inline constexpr int kRing = 4;        // most steps whose results the host has not read
inline constexpr int kStepDraft = 7;   // most drafted tokens of a sequence in a step: 8 rows read a weight together
inline constexpr int kStepTokens = kStepDraft + 1;  // most tokens that a step gives a sequence

// Tokens and positions of one model's rows: of each sequence's last token, then of each drafted token in turn, as in
// Decoder::decode.
struct ModelRows {
  int32_t* tokens;      // [max_tokens]
  int32_t* positions;   // [max_tokens * lanes]; −1: idle
  const int32_t* feed;  // TokenMap::feed; null: the model has the large model's ids
  int lanes;
  bool small;  // whether it is another model than the large one
};

// State in device memory, with an entry for each sequence.
struct SequenceTable {
  int32_t* active;               // 1 while it decodes
  int32_t* step;                 // tokens chosen so far
  int32_t* limit;                // tokens after which it ends
  int32_t* max_draft;            // most tokens that a step may draft
  RowRule* rules;                // how its experts are fused
  int32_t* stop_count;           // its stop token ids
  int32_t* stops;                // [max_batch, kMaxStops]
  ModelRows models[kMostLanes];  // each has a lane
  int model_count;
  int max_batch;
  int max_context;
};

enum class StepResult : int32_t { none, token, stop, length, bad_logits, bad_sample };

// A token that a step gave a sequence.
struct StepRecord {
  StepResult result;
  int32_t token;
  float logprob;
  int32_t failure;  // a SampleFailure, or FusionRecord::bad_model
  int32_t top_count;
  int32_t own_token;  // what the large model alone would choose; −1 if it is not traced or can choose none
  float f;
  float g;
  float alpha[kMaxExperts];
};

// Pinned host memory that the device writes and the host reads a step or two later. A record with StepResult::none ends
// the tokens of a sequence.
struct Ring {
  StepRecord* records;  // [kRing, max_batch, kStepTokens]
  int32_t* top_tokens;  // [kRing, max_batch, kStepTokens, top_capacity]
  float* top_logprobs;
  int64_t* done;          // steps whose records are complete
  int32_t* drafted;       // as DraftTable::tokens, of the last step that has shown them
  int64_t* drafts_shown;  // the number of that step, from 1 on
};

// Draft of a step, in device memory: entry j * batch + s is token j of sequence s, 0 being the first drafted one.
struct DraftTable {
  int32_t* tokens;    // [kStepDraft * batch]
  int32_t* wanted;    // likewise; 1: the sequence wants the token
  int32_t* accepted;  // [batch]
};

struct AdvanceArgs {
  SequenceTable table;
  DraftTable draft;
  const SampleRecord* samples;  // [count * batch]
  const int32_t* top_tokens;    // [count * batch, top_capacity]
  const float* top_logprobs;
  const FusionRecord* fusions;  // [count * batch], or null without experts
  int32_t* own_tokens;          // [count * batch], of a step that is traced
  int experts;
  int top_capacity;
  int batch;
  int count;  // drafted tokens of each sequence; 0: its sampled next token instead
  bool traced;
  bool ends_step;   // whether this is the last advance() of the step
  int64_t* ticket;  // steps done; in device memory
  Ring ring;
};

// Writes the sampled tokens to the host's ring, and ends sequences that are complete. A next token becomes the input of
// the next forward pass. Drafted tokens have been read already: a sequence accepts them up to the first one that was
// not sampled.
void advance(const AdvanceArgs& args, Stream stream);

// Keeps the sampled tokens as those that the large model alone would choose.
void keep_own_tokens(const SampleRecord* samples, int32_t* own_tokens, int rows, Stream stream);

// Sets, after advance(), the positions of `count` more tokens of each sequence, and which of them are wanted.
void begin_draft(const SequenceTable& table, const DraftTable& draft, int batch, int count, Stream stream);

// Makes drafted tokens, from index `first` on, the input of forward passes: those of `samples`, or the table's if that
// is null.
void feed_draft(const SequenceTable& table, const DraftTable& draft, const SampleRecord* samples, int batch, int first,
                int count, Stream stream);

// Makes the last `unread` tokens of each sequence the input of a pass of the small models, over `rows` tokens of each:
// first the last token, which is its input already, then the ones before it.
struct FeedUnreadArgs {
  SequenceTable table;
  SampleArgs sampler;  // it has the tokens
  int batch;
  int unread;
  int rows;
};
void feed_unread(const FeedUnreadArgs& args, Stream stream);

// Shows the host `count` drafted tokens of each sequence, after their records of next tokens.
struct ShowDraftArgs {
  DraftTable draft;
  const int64_t* ticket;
  Ring ring;
  int batch;
  int count;
};
void show_draft(const ShowDraftArgs& args, Stream stream);

// Copies the logits after a sequence's last accepted token to where those of its last token are.
struct KeepArgs {
  const int32_t* active;
  const int32_t* accepted;
  float* logits;  // [(count + 1) * batch * lanes, vocab]
  int64_t vocab;
  int lanes;
  int batch;
};
void keep_logits(const KeepArgs& args, Stream stream);

// Starts a sequence whose prompt is in the caches: the next step gives its first token.
struct StartArgs {
  SequenceTable table;
  int slot;
  int32_t step;  // tokens that it has; the models have read them
  int32_t limit;
  int32_t max_draft;
  RowRule rule;
  int32_t length[kMostLanes];  // of the prompt and those tokens, for each lane of each model in turn; 0: unused
  int32_t stop_count;
  int32_t stops[kMaxStops];
};
void start_sequence(const StartArgs& args, Stream stream);

// Ends a sequence before it is complete.
void stop_sequence(const SequenceTable& table, int slot, Stream stream);

}  // namespace dlf::cuda
