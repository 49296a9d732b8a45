#include "sampling/sampler_state_cuda.h"

#include <ATen/ops/empty.h>
#include <c10/util/Exception.h>

#include <algorithm>
#include <atomic>
#include <bit>
#include <cstring>

namespace dlf::cuda {
namespace {

// Behind one another: the biases' tokens and values, where words begin and end, their tokens, stop tokens.
constexpr int64_t kListsLength = 2 * kMaxLogitBiases + (kMaxBadWordTokens + 1) + kMaxBadWordTokens + kMaxStopTokens;
constexpr int64_t kTokensPerBlock = 4096;  // below this, more blocks cost more than they save

int64_t aligned(int64_t bytes) { return (bytes + 255) / 256 * 256; }
int64_t padded(int64_t count) { return (count + 3) / 4 * 4; }  // rows that begin at 16 bytes

int suitable_blocks(int device, int64_t vocab) {
  if (devices().at(device).compute_capability < 90) {
    return 1;  // no clusters
  }
  int blocks = 1;
  while (blocks < 8 && blocks * kTokensPerBlock < vocab) {
    blocks *= 2;
  }
  return blocks;
}

// Assigns memory to the pointers of args, from `base` on where there is one, and returns how many bytes this takes.
int64_t lay_out(SampleArgs& args, std::byte* base, int64_t max_rows, int64_t max_tokens) {
  int64_t bytes = 0;
  const auto take = [&]<typename T>(T*& pointer, int64_t per_row) {
    pointer = base == nullptr ? nullptr : reinterpret_cast<T*>(base + bytes);
    bytes += aligned(max_rows * per_row * static_cast<int64_t>(sizeof(T)));
  };
  args.lists_stride = padded(kListsLength);
  args.history_stride = padded(max_tokens);
  args.counts_stride = padded(args.vocab);
  args.scores_stride = needs_scores(args.vocab, args.blocks_per_row) ? padded(args.vocab) : 0;
  int32_t* lists = nullptr;
  take(args.rows, 1);
  take(lists, args.lists_stride);
  take(args.history, args.history_stride);
  take(args.counts, args.counts_stride);
  take(args.scores, args.scores_stride);
  take(args.records, 1);
  take(args.top_tokens, args.top_capacity);
  take(args.top_logprobs, args.top_capacity);
  args.lists = lists;
  return bytes;
}

SampleArgs sized_args(int device, int max_rows, int64_t vocab, int64_t max_tokens, int top_capacity,
                      int blocks_per_row) {
  TORCH_CHECK_VALUE(max_rows > 0, "max_rows is ", max_rows, ": give a count > 0");
  TORCH_CHECK_VALUE(vocab > 0 && vocab <= kMaxSampledVocab, "a vocabulary of ", vocab,
                    " tokens cannot be sampled from on CUDA: at most ", kMaxSampledVocab, " are supported");
  TORCH_CHECK_VALUE(max_tokens > 0 && max_tokens <= INT32_MAX, "max_tokens is ", max_tokens, ": give a count > 0");
  TORCH_CHECK_VALUE(top_capacity >= 0 && top_capacity <= kMaxTopTokens, "top_capacity is ", top_capacity,
                    ": give a count from 0 to ", kMaxTopTokens);
  TORCH_CHECK_VALUE(blocks_per_row >= 0 && blocks_per_row <= 8 &&
                        (blocks_per_row == 0 || std::has_single_bit(static_cast<unsigned>(blocks_per_row))),
                    "blocks_per_row is ", blocks_per_row, ": give 1, 2, 4 or 8, or 0 for what suits the device");
  SampleArgs args = {};
  args.vocab = static_cast<int32_t>(vocab);
  args.top_capacity = top_capacity;
  args.blocks_per_row = blocks_per_row > 0 ? blocks_per_row : suitable_blocks(device, vocab);
  return args;
}

int64_t count_word_tokens(const SamplingOptions& options) {
  int64_t count = 0;
  for (const std::vector<int64_t>& word : options.bad_words) {
    count += static_cast<int64_t>(word.size());
  }
  return count;
}

SampleRow row_of(const SamplingOptions& options, std::span<const int64_t> prompt, int64_t vocab) {
  SampleRow row = {};
  row.presence_penalty = options.presence_penalty;
  row.frequency_penalty = options.frequency_penalty;
  row.repetition_penalty = static_cast<float>(options.repetition_penalty);
  row.penalizes = options.repetition_penalty != 1 || options.presence_penalty != 0 || options.frequency_penalty != 0;
  row.min_new_tokens = options.min_new_tokens;
  // Bounded so that neither 0 * scale nor inf * scale is NaN.
  row.scale = options.temperature > 0 ? static_cast<float>(std::clamp(1 / options.temperature, 1e-30, 1e30)) : 0;
  row.top_k = static_cast<int32_t>(std::min(options.top_k, vocab));
  row.top_p = options.top_p;
  row.min_p = static_cast<float>(options.min_p);
  row.seed = options.seed;
  row.stream = options.stream;
  row.logprobs = static_cast<int32_t>(options.logprobs);
  row.bias_count = static_cast<int32_t>(options.logit_bias.size());
  row.word_count = static_cast<int32_t>(options.bad_words.size());
  row.word_tokens = static_cast<int32_t>(count_word_tokens(options));
  row.stop_count = static_cast<int32_t>(options.stop_token_ids.size());
  row.history_length = static_cast<int32_t>(prompt.size());
  return row;
}

void write_lists(const SamplingOptions& options, const SampleRow& row, int32_t* lists) {
  const SampleListBegins begins = list_begins(row);
  // Sorted, so that one thread adds all biases of a token; stably, so that it adds them in the order given.
  std::vector<std::pair<int64_t, double>> biases = options.logit_bias;
  std::stable_sort(biases.begin(), biases.end(), [](const auto& a, const auto& b) { return a.first < b.first; });
  for (size_t i = 0; i < biases.size(); ++i) {
    lists[i] = static_cast<int32_t>(biases[i].first);
    lists[begins.bias_values + i] = std::bit_cast<int32_t>(static_cast<float>(biases[i].second));
  }
  int32_t* word_begin = lists + begins.word_begins;
  int32_t* tokens = lists + begins.words;
  *word_begin = 0;
  for (const std::vector<int64_t>& word : options.bad_words) {
    tokens = std::copy(word.begin(), word.end(), tokens);
    *++word_begin = static_cast<int32_t>(tokens - (lists + begins.words));
  }
  std::copy(options.stop_token_ids.begin(), options.stop_token_ids.end(), lists + begins.stops);
}

}  // namespace

SamplerState::SamplerState(int device, int max_rows, int64_t vocab, int64_t max_tokens, int top_capacity,
                           int blocks_per_row)
    : max_rows_(max_rows), vocab_(vocab), max_tokens_(max_tokens), top_capacity_(top_capacity) {
  args_ = sized_args(device, max_rows, vocab, max_tokens, top_capacity, blocks_per_row);
  memory_ = at::empty({lay_out(args_, nullptr, max_rows, max_tokens)}, on_device(device).dtype(at::kByte));
  lay_out(args_, reinterpret_cast<std::byte*>(memory_.data_ptr()), max_rows, max_tokens);
  const int64_t staged = sizeof(SampleRow) + (args_.lists_stride + args_.history_stride) * sizeof(int32_t);
  staging_ = pinned({max_rows, aligned(staged)}, at::kByte);
  arrivals_ = pinned({max_rows}, at::kInt);
  std::memset(arrivals_.data_ptr(), 0, arrivals_.nbytes());
  tickets_.resize(max_rows);
}

int64_t SamplerState::bytes(int device, int max_rows, int64_t vocab, int64_t max_tokens, int top_capacity,
                            int blocks_per_row) {
  SampleArgs args = sized_args(device, max_rows, vocab, max_tokens, top_capacity, blocks_per_row);
  return lay_out(args, nullptr, max_rows, max_tokens);
}

void SamplerState::check_request(const SamplingOptions& options, std::span<const int64_t> prompt, int64_t vocab,
                                 int64_t max_tokens, int top_capacity) {
  check(options, vocab);
  const auto check_count = [](const char* option, int64_t count, const char* of_what, int64_t bound) {
    TORCH_CHECK_VALUE(count <= bound, option, " holds ", count, " ", of_what, ": at most ", bound,
                      " are supported on CUDA");
  };
  check_count("logit_bias", static_cast<int64_t>(options.logit_bias.size()), "entries", kMaxLogitBiases);
  check_count("bad_words", count_word_tokens(options), "tokens", kMaxBadWordTokens);
  check_count("stop_token_ids", static_cast<int64_t>(options.stop_token_ids.size()), "tokens", kMaxStopTokens);
  TORCH_CHECK_VALUE(options.logprobs <= top_capacity, "logprobs is ", options.logprobs, ": give a count from 0 to ",
                    top_capacity, " on CUDA");
  TORCH_CHECK_VALUE(static_cast<int64_t>(prompt.size()) <= max_tokens, "the prompt has ", prompt.size(),
                    " tokens: at most ", max_tokens, " fit");
  for (int64_t token : prompt) {
    TORCH_CHECK_VALUE(token >= 0 && token < vocab, "the prompt holds token ", token, ", but the vocabulary has ", vocab,
                      " tokens");
  }
}

// The row's pinned memory, once nothing is read from it any more. A ticket that travels to the device and back tells.
void* SamplerState::staging(int row, Queue& queue) {
  std::atomic_ref<int32_t> arrived(arrivals_.data_ptr<int32_t>()[row]);
  if (static_cast<uint32_t>(arrived.load(std::memory_order_acquire)) != tickets_[row]) {
    queue.synchronize();
  }
  return staging_.data_ptr<uint8_t>() + row * staging_.size(1);
}

void SamplerState::set(int row, const SamplingOptions& options, std::span<const int64_t> prompt, Queue& queue) {
  TORCH_CHECK_INDEX(row >= 0 && row < max_rows_, "row ", row, " of a sampler of ", max_rows_, " rows");
  check_request(options, prompt, vocab_, max_tokens_, top_capacity_);
  auto* staged = static_cast<SampleRow*>(staging(row, queue));
  auto* lists = reinterpret_cast<int32_t*>(staged + 1);
  int32_t* history = lists + args_.lists_stride;
  *staged = row_of(options, prompt, vocab_);
  staged->ticket = ++tickets_[row];
  write_lists(options, *staged, lists);
  std::copy(prompt.begin(), prompt.end(), history);

  constexpr int64_t kItem = sizeof(int32_t);
  SampleRow* device_row = args_.rows + row;
  queue.copy(device_row, staged, sizeof(SampleRow));
  queue.copy(const_cast<int32_t*>(args_.lists) + row * args_.lists_stride, lists, list_begins(*staged).end * kItem);
  if (!prompt.empty()) {
    queue.copy(args_.history + row * args_.history_stride, history, static_cast<int64_t>(prompt.size()) * kItem);
  }
  if (staged->penalizes != 0) {  // nothing else reads what an earlier sequence left in the counts
    queue.clear(args_.counts + row * args_.counts_stride, args_.counts_stride * kItem);
    count_prompt(args_, row, staged->history_length, queue.stream());
  }
  queue.copy(arrivals_.data_ptr<int32_t>() + row, &device_row->ticket, sizeof(device_row->ticket));
}

void SamplerState::sample(const float* logits, int64_t stride, const int32_t* active, int rows, Queue& queue) {
  TORCH_CHECK(rows >= 0 && rows <= max_rows_, rows, " rows for a sampler of ", max_rows_);
  if (rows == 0) {
    return;
  }
  SampleArgs args = args_;
  args.logits = logits;
  args.logits_stride = stride;
  args.active = active;
  args.row_count = rows;
  cuda::sample(args, queue.stream());
}

const SampleRecord* SamplerState::records() const { return args_.records; }
const int32_t* SamplerState::top_tokens() const { return args_.top_tokens; }
const float* SamplerState::top_logprobs() const { return args_.top_logprobs; }

}  // namespace dlf::cuda
