#include "sampling/cuda/sampler_state.h"

#include <ATen/ops/empty.h>
#include <c10/util/Exception.h>

#include <algorithm>
#include <atomic>
#include <bit>
#include <cstring>

#include "sampling/mask.h"
#include "support/option_error.h"

namespace dlf::cuda {
namespace {

// Most entries of a row's lists: the biases' tokens and values, begins and ends of words, their tokens, stop tokens.
constexpr int64_t kListsLength = 2 * kMaxLogitBiases + (kMaxBadWordTokens + 1) + kMaxBadWordTokens + kMaxStopTokens;
constexpr int64_t kTokensPerBlock = 4096;  // below this, more blocks cost more than they save

int64_t aligned(int64_t bytes) { return (bytes + 255) / 256 * 256; }
int64_t padded(int64_t count) { return (count + 3) / 4 * 4; }  // aligns rows to 16 bytes

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

// Assigns memory to the pointers of args, from `base` on unless it is null, and returns how many bytes this takes.
int64_t lay_out(SampleArgs& args, std::byte* base, const SamplerState::Size& size) {
  int64_t bytes = 0;
  const auto take = [&]<typename T>(T*& pointer, int64_t count, int64_t each) {
    pointer = base == nullptr ? nullptr : reinterpret_cast<T*>(base + bytes);
    bytes += aligned(count * each * static_cast<int64_t>(sizeof(T)));
  };
  args.lists_stride = padded(kListsLength);
  args.history_stride = padded(size.max_tokens);
  args.counts_stride = padded(args.vocab);
  args.masks_stride = padded(mask_words(args.vocab));
  args.scores_stride = needs_scores(args.vocab, args.blocks_per_row) ? padded(args.vocab) : 0;
  int32_t* lists = nullptr;
  int32_t* masks = nullptr;
  take(args.rows, size.max_sequences, 1);
  take(lists, size.max_sequences, args.lists_stride);
  take(args.history, size.max_sequences, args.history_stride);
  take(args.counts, size.max_sequences, args.counts_stride);
  take(args.scores, size.max_rows, args.scores_stride);
  take(masks, size.max_rows, args.masks_stride);
  take(args.records, size.max_rows, 1);
  take(args.top_tokens, size.max_rows, args.top_capacity);
  take(args.top_logprobs, size.max_rows, args.top_capacity);
  args.lists = lists;
  args.masks = masks;
  return bytes;
}

SampleArgs sized_args(int device, const SamplerState::Size& size) {
  TORCH_CHECK_VALUE(size.max_sequences > 0, "max_sequences is ", size.max_sequences, ": give a count > 0");
  TORCH_CHECK_VALUE(size.max_rows >= size.max_sequences, "max_rows is ", size.max_rows, " for ", size.max_sequences,
                    " sequences: give at least one per sequence");
  TORCH_CHECK_VALUE(size.vocab > 0 && size.vocab <= kMaxSampledVocab, "a vocabulary of ", size.vocab,
                    " tokens cannot be sampled from on CUDA: at most ", kMaxSampledVocab, " are supported");
  TORCH_CHECK_VALUE(size.max_tokens > 0 && size.max_tokens <= INT32_MAX, "max_tokens is ", size.max_tokens,
                    ": give a count > 0");
  TORCH_CHECK_VALUE(size.top_capacity >= 0 && size.top_capacity <= kMaxTopTokens, "top_capacity is ", size.top_capacity,
                    ": give a count from 0 to ", kMaxTopTokens);
  const int blocks = size.blocks_per_row;
  TORCH_CHECK_VALUE(blocks >= 0 && blocks <= 8 && (blocks == 0 || std::has_single_bit(static_cast<unsigned>(blocks))),
                    "blocks_per_row is ", blocks, ": give 1, 2, 4 or 8, or 0 for the device's default");
  SampleArgs args = {};
  args.vocab = static_cast<int32_t>(size.vocab);
  args.top_capacity = size.top_capacity;
  args.blocks_per_row = blocks > 0 ? blocks : suitable_blocks(device, size.vocab);
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
  row.masked = options.masked ? 1 : 0;
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

SamplerState::SamplerState(int device, const Size& size) : size_(size), args_(sized_args(device, size)) {
  memory_ = at::empty({lay_out(args_, nullptr, size)}, on_device(device).dtype(at::kByte));
  lay_out(args_, reinterpret_cast<std::byte*>(memory_.data_ptr()), size);
  const int64_t staged = sizeof(SampleRow) + (args_.lists_stride + args_.history_stride) * sizeof(int32_t);
  staging_ = pinned({size.max_sequences, aligned(staged)}, at::kByte);
  masks_ = pinned({size.max_rows, args_.masks_stride}, at::kInt);
  arrivals_ = pinned({size.max_sequences}, at::kInt);
  std::memset(arrivals_.data_ptr(), 0, arrivals_.nbytes());
  tickets_.resize(size.max_sequences);
}

int64_t SamplerState::bytes(int device, const Size& size) {
  SampleArgs args = sized_args(device, size);
  return lay_out(args, nullptr, size);
}

void SamplerState::check_request(const SamplingOptions& options, std::span<const int64_t> prompt, int64_t vocab,
                                 int64_t max_tokens, int top_capacity) {
  check(options, vocab);
  const auto check_count = [](const char* option, int64_t count, const char* of_what, int64_t bound) {
    check_option(count <= bound, option, " holds ", count, " ", of_what, ": at most ", bound, " are supported on CUDA");
  };
  check_count("logit_bias", static_cast<int64_t>(options.logit_bias.size()), "entries", kMaxLogitBiases);
  check_count("bad_words", count_word_tokens(options), "tokens", kMaxBadWordTokens);
  check_count("stop_token_ids", static_cast<int64_t>(options.stop_token_ids.size()), "tokens", kMaxStopTokens);
  check_option(options.logprobs <= top_capacity, "logprobs", " is ", options.logprobs, ": give a count from 0 to ",
               top_capacity, " on CUDA");
  TORCH_CHECK_VALUE(static_cast<int64_t>(prompt.size()) <= max_tokens, "the prompt has ", prompt.size(),
                    " tokens: at most ", max_tokens, " fit");
  for (int64_t token : prompt) {
    TORCH_CHECK_VALUE(token >= 0 && token < vocab, "the prompt holds token ", token, ", but the vocabulary has ", vocab,
                      " tokens");
  }
}

// Returns the pinned memory of a place once the device no longer reads from it, which a ticket that travels to the
// device and back shows.
void* SamplerState::staging(int place, Queue& queue) {
  std::atomic_ref<int32_t> arrived(arrivals_.data_ptr<int32_t>()[place]);
  if (static_cast<uint32_t>(arrived.load(std::memory_order_acquire)) != tickets_[place]) {
    queue.synchronize();
  }
  return staging_.data_ptr<uint8_t>() + place * staging_.size(1);
}

void SamplerState::set(int place, const SamplingOptions& options, std::span<const int64_t> prompt, Queue& queue,
                       std::span<const int64_t> chosen) {
  TORCH_CHECK_INDEX(place >= 0 && place < size_.max_sequences, "place is ", place, "; the sampler has ",
                    size_.max_sequences, " places");
  check_request(options, prompt, size_.vocab, size_.max_tokens, size_.top_capacity);
  TORCH_CHECK_VALUE(static_cast<int64_t>(prompt.size() + chosen.size()) <= size_.max_tokens, "a sequence has ",
                    prompt.size() + chosen.size(), " tokens: at most ", size_.max_tokens, " fit");
  auto* staged = static_cast<SampleRow*>(staging(place, queue));
  auto* lists = reinterpret_cast<int32_t*>(staged + 1);
  int32_t* history = lists + args_.lists_stride;
  *staged = row_of(options, prompt, size_.vocab);
  staged->ticket = ++tickets_[place];
  write_lists(options, *staged, lists);
  std::copy(prompt.begin(), prompt.end(), history);
  std::copy(chosen.begin(), chosen.end(), history + prompt.size());

  constexpr int64_t kItem = sizeof(int32_t);
  SampleRow* device_row = args_.rows + place;
  queue.copy(device_row, staged, sizeof(SampleRow));
  queue.copy(const_cast<int32_t*>(args_.lists) + place * args_.lists_stride, lists, list_begins(*staged).end * kItem);
  if (const auto tokens = static_cast<int64_t>(prompt.size() + chosen.size()); tokens > 0) {
    queue.copy(args_.history + place * args_.history_stride, history, tokens * kItem);
  }
  if (staged->penalizes != 0) {  // otherwise nothing reads the counts of an earlier sequence
    queue.clear(args_.counts + place * args_.counts_stride, args_.counts_stride * kItem);
    count_prompt(args_, place, staged->history_length, queue.stream());
  }
  append_chosen(args_, place, static_cast<int32_t>(chosen.size()), queue.stream());
  queue.copy(arrivals_.data_ptr<int32_t>() + place, &device_row->ticket, sizeof(device_row->ticket));
}

void SamplerState::send_masks(int64_t first, int64_t count, Queue& queue) {
  const int64_t begin = first * args_.masks_stride;
  const int64_t bytes = count * args_.masks_stride * static_cast<int64_t>(sizeof(int32_t));
  queue.copy(const_cast<int32_t*>(args_.masks) + begin, masks() + begin, bytes);
}

void SamplerState::sample(const Rows& rows, int sequences, Queue& queue) {
  choose(rows, sequences, 0, 1, Chosen::appended, queue);
}

void SamplerState::draft(const Rows& rows, int sequences, int ahead, Queue& queue) {
  choose(rows, sequences, ahead, 1, Chosen::drafted, queue);
}

void SamplerState::verify(const Rows& rows, int sequences, int count, Queue& queue) {
  choose(rows, sequences, 0, count, Chosen::recorded, queue);
}

void SamplerState::choose(const Rows& rows, int sequences, int ahead, int count, Chosen chosen, Queue& queue) {
  const int row_count = count * sequences;
  TORCH_CHECK(sequences >= 0 && sequences <= size_.max_sequences && row_count <= size_.max_rows, row_count, " rows of ",
              sequences, " sequences; this sampler takes at most ", size_.max_rows, " rows, and sequences up to ",
              size_.max_sequences);
  if (row_count == 0) {
    return;
  }
  SampleArgs args = this->args(sequences);
  args.logits = rows.logits;
  args.logits_stride = rows.stride;
  args.active = rows.active;
  args.masks = rows.masked ? args.masks : nullptr;
  args.ahead = ahead;
  args.chosen = chosen;
  args.row_count = row_count;
  cuda::sample(args, queue.stream());
}

void SamplerState::append_drafted(const int32_t* accepted, int sequences, Queue& queue) {
  cuda::append_drafted(args(sequences), accepted, queue.stream());
}

SampleArgs SamplerState::args(int sequences) const {
  SampleArgs args = args_;
  args.sequences = sequences;
  return args;
}

const SampleRecord* SamplerState::records() const { return args_.records; }
const int32_t* SamplerState::top_tokens() const { return args_.top_tokens; }
const float* SamplerState::top_logprobs() const { return args_.top_logprobs; }

}  // namespace dlf::cuda
