#pragma once

#include <cstdint>

#include "sampling/failure.h"
#include "support/cuda/stream.h"
#include "support/host_device.h"

namespace dlf::cuda {

// Choice of a row. After a failure the token is 0, which the embedding has, and the row stays as it was.
struct SampleRecord {
  int32_t token;
  float logprob;  // of the raw logits, before any option
  SampleFailure failure;
  int32_t top_count;  // below `logprobs` if fewer tokens have logits above -inf
};

// Options of a row and progress of its sequence, in device memory.
struct SampleRow {
  double presence_penalty;
  double frequency_penalty;
  double top_p;
  uint64_t seed;
  uint64_t stream;
  int64_t step;  // counts the chosen tokens, and is the random counter
  int64_t min_new_tokens;
  float repetition_penalty;
  float scale;  // 1 / temperature; 0: greedy
  float min_p;
  int32_t top_k;  // 0: off
  int32_t logprobs;
  int32_t masked;          // whether SampleArgs::masks count
  int32_t penalizes;       // whether the row's counts are kept
  int32_t bias_count;      // entries of each kind in the row's lists
  int32_t word_count;      // bad words
  int32_t word_tokens;     // of all bad words together
  int32_t stop_count;      // stop tokens
  int32_t history_length;  // prompt and chosen tokens
  uint32_t ticket;         // tells the host which set() has arrived
};

// Offsets of the parts of a row's lists, which lie one behind the other:
// bias tokens in rising order, their values, the words' begins and the end of the last, the words' tokens, stop tokens.
struct SampleListBegins {
  int64_t bias_values;
  int64_t word_begins;
  int64_t words;
  int64_t stops;
  int64_t end;
};

DLF_HOST_DEVICE inline SampleListBegins list_begins(const SampleRow& row) {
  SampleListBegins begins;
  begins.bias_values = row.bias_count;
  begins.word_begins = begins.bias_values + row.bias_count;
  begins.words = begins.word_begins + row.word_count + 1;
  begins.stops = begins.words + row.word_tokens;
  begins.end = begins.stops + row.stop_count;
  return begins;
}

// What happens to a chosen token.
enum class Chosen : int32_t {
  appended,  // the sequence moves one step on
  drafted,   // it is put behind the sequence's tokens, where choices further ahead see it
  recorded,  // it is only recorded
};

struct SampleArgs {
  const float* logits;  // [rows, logits_stride]
  int64_t logits_stride;
  const int32_t* active;  // [rows], 0: the row is skipped
  // [sequences, rows / sequences, masks_stride]: of each sequence, a mask for each of its rows in turn; null: none
  const int32_t* masks;
  int64_t masks_stride;
  // Row r belongs to sequence r % sequences, `ahead` + r / sequences tokens ahead of its next one, as if the tokens
  // drafted before had been appended.
  int32_t sequences;
  int32_t ahead;
  Chosen chosen;
  SampleRow* rows;       // [sequences]
  const int32_t* lists;  // [sequences, lists_stride]
  int64_t lists_stride;
  int32_t* history;  // [sequences, history_stride]
  int64_t history_stride;
  // [sequences, counts_stride]: how often a token was chosen; -1 if it is only in the prompt, 0 if nowhere
  int32_t* counts;
  int64_t counts_stride;
  float* scores;  // [rows, scores_stride], used if they do not fit into shared memory
  int64_t scores_stride;
  SampleRecord* records;  // [rows]
  int32_t* top_tokens;    // [rows, top_capacity], the most probable first
  float* top_logprobs;    // [rows, top_capacity]
  int32_t top_capacity;   // at most kMaxTopTokens
  int32_t vocab;          // at most kMaxSampledVocab
  int32_t row_count;
  int32_t blocks_per_row;  // a power of two up to 8, and 1 below sm_90; the answer does not depend on it
};

inline constexpr int32_t kMaxTopTokens = 512;
inline constexpr int32_t kMaxSampledVocab = 1 << 19;

// Whether the rows' scores need memory of their own.
bool needs_scores(int32_t vocab, int blocks_per_row);

// Chooses a token for every active row as Sampler does.
void sample(const SampleArgs& args, Stream stream);

// Appends the first accepted[s] drafted tokens of every sequence s.
void append_drafted(const SampleArgs& args, const int32_t* accepted, Stream stream);

// Appends the `count` tokens behind the history of one sequence, which are there already.
void append_chosen(const SampleArgs& args, int sequence, int32_t count, Stream stream);

// Marks the tokens of a row's history, which is its prompt, in its counts, which must be zero.
void count_prompt(const SampleArgs& args, int row, int32_t length, Stream stream);

}  // namespace dlf::cuda
