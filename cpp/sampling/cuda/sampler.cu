#include <cmath>

#include "sampling/cuda/candidates.h"
#include "sampling/cuda/sampler.h"
#include "sampling/mask.h"
#include "sampling/random.h"

namespace dlf::cuda {
namespace {

constexpr size_t kClusterScoreBytes = 192 * 1024;  // of a block's shared memory, with clusters (sm_90)
constexpr size_t kScoreBytes = 80 * 1024;          // without them

// Shared memory of a block, before its scores.
struct alignas(16) BlockShared {
  RowShared row;
  SampleRow options;
  uint64_t top[kMaxTopTokens];  // in the row's first block: the most probable tokens
  int32_t top_count;
  CandidateLists lists;
};

__host__ __device__ int32_t slice_length(int32_t vocab, int blocks) {
  return ((vocab + blocks - 1) / blocks + 3) / 4 * 4;  // so that a slice of aligned logits is aligned
}

// Copies the logits to the slice's scores. Returns the greatest of those that this thread reads; NaN and +inf are
// greater than any.
__device__ uint64_t read_logits(const RowBlocks& row, const float* logits, const Slice& slice) {
  const float* from = logits + slice.begin;
  float best = -INFINITY;
  int32_t best_index = INT_MAX - slice.begin;
  bool broken = false;
  const auto take = [&](float logit, int32_t i) {
    broken |= !(logit < INFINITY);
    if (logit > best) {
      best = logit;
      best_index = i;
    }
  };
  const int32_t count = slice.end - slice.begin;
  int32_t done = 0;
  if (reinterpret_cast<uintptr_t>(from) % sizeof(float4) == 0) {
    done = max(count, 0) / 4 * 4;
#pragma unroll 4
    for (int32_t i = 4 * row.thread; i < done; i += 4 * kRowThreads) {
      const float4 four = *reinterpret_cast<const float4*>(from + i);
      *reinterpret_cast<float4*>(slice.scores + i) = four;
      take(four.x, i);
      take(four.y, i + 1);
      take(four.z, i + 2);
      take(four.w, i + 3);
    }
  }
#pragma unroll 8
  for (int32_t i = done + row.thread; i < count; i += kRowThreads) {
    const float logit = from[i];
    slice.scores[i] = logit;
    take(logit, i);
  }
  return broken ? UINT64_MAX : rank_key(best, slice.begin + best_index);
}

__device__ uint64_t greatest_score(const RowBlocks& row, const Slice& slice) {
  float best = -INFINITY;
  int32_t best_token = INT_MAX;
  bool broken = false;
#pragma unroll 4
  for (int32_t token = slice.begin + row.thread; token < slice.end; token += kRowThreads) {
    const float score = slice.score(token);
    broken |= !(score < INFINITY);
    if (score > best) {
      best = score;
      best_token = token;
    }
  }
  return broken ? UINT64_MAX : rank_key(best, best_token);
}

__device__ void exclude_masked(const RowBlocks& row, const int32_t* mask, const Slice& slice) {
#pragma unroll 4
  for (int32_t token = slice.begin + row.thread; token < slice.end; token += kRowThreads) {
    if (!allows(mask, token)) {
      slice.scores[token - slice.begin] = -INFINITY;
    }
  }
}

__device__ uint64_t sum_weights(const RowBlocks& row, const Slice& slice, float peak) {
  const int32_t count = max(slice.end - slice.begin, 0);
  uint64_t sum = 0;
#pragma unroll 2
  for (int32_t i = 4 * row.thread; i + 4 <= count; i += 4 * kRowThreads) {
    const float4 four = *reinterpret_cast<const float4*>(slice.scores + i);
    sum += fixed_point(weight(four.x, peak, 1.0f)) + fixed_point(weight(four.y, peak, 1.0f)) +
           fixed_point(weight(four.z, peak, 1.0f)) + fixed_point(weight(four.w, peak, 1.0f));
  }
  if (row.thread < count % 4) {
    sum += fixed_point(weight(slice.scores[count - 1 - row.thread], peak, 1.0f));
  }
  return sum;
}

__device__ SampleFailure failure_of(uint64_t peak) {
  const uint32_t key = static_cast<uint32_t>(peak >> 32);
  if (key >= kInfiniteKey) {
    return SampleFailure::broken_logits;
  }
  return key <= kExcludedKey ? SampleFailure::all_excluded : SampleFailure::none;
}

// Gathers the most probable tokens in the row's first block, in any order.
__device__ void gather_top(RowBlocks& row, const Slice& slice, float peak, uint64_t count, BlockShared* shared) {
  const Measure ones{false, peak, 1.0f};
  const Limit limit = find_limit(row, slice, ones, {0, count}, 0);
  BlockShared* first = row.at_block(shared, 0);
  for (int32_t token = slice.begin + row.thread; token < slice.end; token += kRowThreads) {
    const float score = slice.score(token);
    if (limit.keeps(ordered(score), token)) {
      first->top[atomicAdd(&first->top_count, 1)] = rank_key(score, token);
    }
  }
}

// Count of a token, including the `ahead` drafted tokens behind those that were counted.
__device__ int32_t count_of(int32_t token, const int32_t* counts, const int32_t* drafted, int32_t ahead) {
  int32_t count = __ldg(counts + token);
  for (int32_t i = 0; i < ahead; ++i) {
    count = drafted[i] == token ? max(count, 0) + 1 : count;
  }
  return count;
}

__device__ void penalize(const RowBlocks& row, const SampleRow& options, const int32_t* counts, const int32_t* drafted,
                         int32_t ahead, const Slice& slice) {
#pragma unroll 4
  for (int32_t token = slice.begin + row.thread; token < slice.end; token += kRowThreads) {
    const int32_t count = count_of(token, counts, drafted, ahead);
    if (count == 0) {
      continue;
    }
    float& score = slice.scores[token - slice.begin];
    const float repeated = score < 0 ? score * options.repetition_penalty : score / options.repetition_penalty;
    score = repeated;
    if (count > 0) {
      const float penalty = static_cast<float>(options.presence_penalty + options.frequency_penalty * count);
      score = __fsub_rn(repeated, penalty);  // rounded as on the CPU, never fused with the product
    }
  }
}

__device__ void add_biases(const RowBlocks& row, const SampleRow& options, const int32_t* lists, const Slice& slice) {
  const int32_t* values = lists + list_begins(options).bias_values;
  for (int32_t i = row.thread; i < options.bias_count; i += kRowThreads) {
    const int32_t token = lists[i];
    if (token < slice.begin || token >= slice.end || (i > 0 && lists[i - 1] == token)) {
      continue;
    }
    float score = slice.score(token);
    for (int32_t j = i; j < options.bias_count && lists[j] == token; ++j) {  // in the order of the request
      score += __int_as_float(values[j]);
    }
    slice.scores[token - slice.begin] = score;
  }
}

// Excludes the last token of every bad word whose other tokens end the history, and the stop tokens of a sequence that
// is too short.
__device__ void exclude(const RowBlocks& row, const SampleRow& options, const int32_t* lists, const int32_t* history,
                        const Slice& slice) {
  const SampleListBegins begins = list_begins(options);
  const auto exclude_token = [&](int32_t token) {
    if (token >= slice.begin && token < slice.end) {
      slice.scores[token - slice.begin] = -INFINITY;
    }
  };
  for (int32_t word = row.thread; word < options.word_count; word += kRowThreads) {
    const int32_t* tokens = lists + begins.words + lists[begins.word_begins + word];
    const int32_t preceding = lists[begins.word_begins + word + 1] - lists[begins.word_begins + word] - 1;
    const int32_t* ending = history + options.history_length - preceding;
    bool matches = preceding <= options.history_length;
    for (int32_t i = 0; matches && i < preceding; ++i) {
      matches = tokens[i] == ending[i];
    }
    if (matches) {
      exclude_token(tokens[preceding]);
    }
  }
  if (options.step < options.min_new_tokens) {
    for (int32_t i = row.thread; i < options.stop_count; i += kRowThreads) {
      exclude_token(lists[begins.stops + i]);
    }
  }
}

// Draws a token. The result of the row's first block is valid; those of the others may not be.
__device__ int32_t draw(RowBlocks& row, const SampleRow& options, Slice slice, float peak, uint64_t total,
                        int32_t vocab, BlockShared* shared) {
  const double uniform = philox_uniform(options.seed, static_cast<uint64_t>(options.step), options.stream);
  Measure measure{true, peak, options.scale};
  const bool by_count = options.top_k > 0 && options.top_k < vocab;
  if (limits_ranks(options, vocab)) {
    const Listed listed = all_listed(row, &shared->row);
    const bool enough =
        by_count ? listed.count >= options.top_k : listed.sum >= greater(Target{options.top_p, 0}.of(total), 1);
    if (listed.count <= kFewTokens && enough) {
      return row.rank > 0
                 ? 0
                 : draw_from_few(row, options, slice, measure, total, vocab, &shared->row, &shared->lists, uniform);
    }
    if (listed.count < INT_MAX && enough) {
      slice.listed = shared->lists.tokens;
      slice.listed_counts = shared->row.listed_counts;
    }
  }
  if (by_count) {
    measure.weighs = false;
    measure.within = find_limit(row, slice, measure, {0, static_cast<uint64_t>(options.top_k)}, 0);
    measure.weighs = true;
  }
  if (options.top_p < 1) {
    measure.within = find_limit(row, slice, measure, {options.top_p, 0}, by_count ? 0 : total);
  }
  measure.least_weight = options.min_p;
  return find_token(row, slice, measure, {uniform, 0});
}

// Moves a sequence one step on; its history has the token already.
__device__ void append(const SampleArgs& args, int sequence, int32_t token) {
  SampleRow& state = args.rows[sequence];
  ++state.step;
  if (state.history_length < args.history_stride) {
    ++state.history_length;
  }
  if (state.penalizes != 0) {
    int32_t& count = args.counts[sequence * args.counts_stride + token];
    count = max(count, 0) + 1;
  }
}

// Writes the choice of a row, in its first block. `log_total` is that of the raw logits.
__device__ void record(const RowBlocks& row, const SampleArgs& args, const SampleRow& options, int index, int32_t token,
                       double log_total, const BlockShared* shared) {
  const int32_t top_count = shared->top_count;
  for (int32_t i = row.thread; i < top_count; i += kRowThreads) {
    const uint64_t key = shared->top[i];
    int32_t position = 0;
    for (int32_t j = 0; j < top_count; ++j) {
      position += shared->top[j] > key ? 1 : 0;
    }
    const int64_t place = static_cast<int64_t>(index) * args.top_capacity + position;
    args.top_tokens[place] = token_of(key);
    args.top_logprobs[place] =
        static_cast<float>(static_cast<double>(score_of(static_cast<uint32_t>(key >> 32))) - log_total);
  }
  if (row.thread != 0) {
    return;
  }
  const float logit = args.logits[index * args.logits_stride + token];
  args.records[index] = {token, static_cast<float>(static_cast<double>(logit) - log_total), SampleFailure::none,
                         top_count};
  const int sequence = index % args.sequences;
  if (args.chosen != Chosen::recorded && options.history_length < args.history_stride) {
    args.history[sequence * args.history_stride + options.history_length] = token;
  }
  if (args.chosen == Chosen::appended) {
    append(args, sequence, token);
  }
}

__device__ void record_failure(const RowBlocks& row, const SampleArgs& args, int index, SampleFailure failure) {
  if (row.rank == 0 && row.thread == 0) {
    args.records[index] = {0, 0, failure, 0};
  }
  row.sync();  // a block exits only when no other reads its shared memory
}

template <bool kScoresAreShared>
__global__ void __launch_bounds__(kRowThreads, kScoresAreShared ? 2 : 1) sample_kernel(SampleArgs args) {
  const int index = static_cast<int>(blockIdx.x) / args.blocks_per_row;
  if (args.active[index] == 0) {
    return;
  }
  auto* shared = shared_memory<BlockShared>();
  RowBlocks row(&shared->row, Cluster());
  const int sequence = index % args.sequences;
  const int ahead = args.ahead + index / args.sequences;
  if (row.thread == 0) {
    shared->options = args.rows[sequence];
    shared->options.step += ahead;
    shared->options.history_length += ahead;
    if (args.chosen == Chosen::drafted) {
      shared->options.logprobs = 0;  // not used for drafts
    }
    shared->top_count = 0;
  }
  const SampleRow& options = shared->options;  // read after the first barrier
  const float* logits = args.logits + index * args.logits_stride;
  const int32_t* lists = args.lists + sequence * args.lists_stride;
  const int32_t* history = args.history + sequence * args.history_stride;
  Slice slice;
  slice.length = slice_length(args.vocab, args.blocks_per_row);
  slice.stretch = ((slice.length + kRowWarps - 1) / kRowWarps + 3) / 4 * 4;
  slice.begin = row.rank * slice.length;
  slice.end = min(slice.begin + slice.length, args.vocab);
  if constexpr (kScoresAreShared) {
    slice.scores = reinterpret_cast<float*>(shared + 1);
  } else {
    slice.scores = args.scores + index * args.scores_stride + slice.begin;
  }

  row.show(RowBlocks::warp_max(read_logits(row, logits, slice)));
  uint64_t peak = row.max_shown(0);
  if (options.masked != 0 && args.masks != nullptr) {
    const int mask = sequence * (args.row_count / args.sequences) + index / args.sequences;
    exclude_masked(row, args.masks + mask * args.masks_stride, slice);
    row.show(RowBlocks::warp_max(greatest_score(row, slice)));
    peak = row.max_shown(0);
  }
  SampleFailure failure = failure_of(peak);
  if (failure != SampleFailure::none) {
    return record_failure(row, args, index, failure);
  }
  const float raw_peak = score_of(static_cast<uint32_t>(peak >> 32));
  const uint64_t weight_sum = RowBlocks::warp_sum(sum_weights(row, slice, raw_peak));
  if (options.logprobs > 0) {
    gather_top(row, slice, raw_peak, static_cast<uint64_t>(options.logprobs), shared);
  }

  uint64_t total = 0;
  const bool processes = options.penalizes != 0 || options.bias_count > 0 || options.word_count > 0 ||
                         (options.step < options.min_new_tokens && options.stop_count > 0);
  if (processes) {
    __syncthreads();  // all threads have read the raw scores
    if (options.penalizes != 0) {
      penalize(row, options, args.counts + sequence * args.counts_stride, history + options.history_length - ahead,
               ahead, slice);
      __syncthreads();
    }
    add_biases(row, options, lists, slice);
    __syncthreads();
    exclude(row, options, lists, history, slice);
    __syncthreads();
    row.show(weight_sum, RowBlocks::warp_max(greatest_score(row, slice)));
    total = row.sum_shown(0);
    peak = row.max_shown(1);
    failure = failure_of(peak);
    if (failure != SampleFailure::none) {
      return record_failure(row, args, index, failure);
    }
  }
  const float best = score_of(static_cast<uint32_t>(peak >> 32));
  uint64_t scaled = 0;
  const bool by_rank = limits_ranks(options, args.vocab);
  if (by_rank) {
    scaled = list_candidates(row, options, slice, {true, best, options.scale}, shared->row, shared->lists);
  }
  if (by_rank || !processes) {
    row.show(processes ? 0 : weight_sum, scaled);
    total = processes ? total : row.sum_shown(0);
    scaled = row.sum_shown(1);
  }

  int32_t token = token_of(peak);
  if (options.scale > 0) {
    token = draw(row, options, slice, best, scaled, args.vocab, shared);
  }
  if (row.rank == 0) {
    const double log_total = log(static_cast<double>(total) * kFixedPointUnit) + static_cast<double>(raw_peak);
    record(row, args, options, index, token, log_total, shared);
  }
  row.sync();  // a block exits only when no other reads its shared memory
}

__global__ void append_drafted_kernel(SampleArgs args, const int32_t* accepted) {
  const int sequence = static_cast<int>(threadIdx.x);
  if (sequence >= args.sequences) {
    return;
  }
  const int32_t* drafted = args.history + sequence * args.history_stride + args.rows[sequence].history_length;
  for (int32_t i = 0; i < accepted[sequence]; ++i) {
    append(args, sequence, drafted[i]);
  }
}

__global__ void append_chosen_kernel(SampleArgs args, int sequence, int32_t count) {
  const int32_t* chosen = args.history + sequence * args.history_stride + args.rows[sequence].history_length;
  for (int32_t i = 0; i < count; ++i) {
    append(args, sequence, chosen[i]);
  }
}

__global__ void count_prompt_kernel(const int32_t* history, int32_t length, int32_t* counts) {
  const int32_t i = static_cast<int32_t>(blockIdx.x * blockDim.x + threadIdx.x);
  if (i < length) {
    counts[history[i]] = -1;
  }
}

size_t score_bytes(int32_t vocab, int blocks) { return slice_length(vocab, blocks) * sizeof(float); }

}  // namespace

bool needs_scores(int32_t vocab, int blocks_per_row) {
  return score_bytes(vocab, blocks_per_row) > (blocks_per_row > 1 ? kClusterScoreBytes : kScoreBytes);
}

void sample(const SampleArgs& args, Stream stream) {
  const bool shared = !needs_scores(args.vocab, args.blocks_per_row);
  Shape shape;
  shape.grid = dim3(static_cast<unsigned>(args.row_count * args.blocks_per_row));
  shape.block = dim3(kRowThreads);
  shape.shared_bytes = sizeof(BlockShared) + (shared ? score_bytes(args.vocab, args.blocks_per_row) : 0);
  shape.cluster = static_cast<unsigned>(args.blocks_per_row);
  launch(shared ? sample_kernel<true> : sample_kernel<false>, shape, stream, args);
}

void append_drafted(const SampleArgs& args, const int32_t* accepted, Stream stream) {
  const auto warps = static_cast<unsigned>((args.sequences + 31) / 32);
  launch(append_drafted_kernel, {dim3(1), dim3(32 * warps)}, stream, args, accepted);
}

void append_chosen(const SampleArgs& args, int sequence, int32_t count, Stream stream) {
  if (count > 0) {
    launch(append_chosen_kernel, {dim3(1), dim3(1)}, stream, args, sequence, count);
  }
}

void count_prompt(const SampleArgs& args, int row, int32_t length, Stream stream) {
  if (length == 0) {
    return;
  }
  constexpr unsigned kThreads = 256;
  Shape shape;
  shape.grid = dim3((static_cast<unsigned>(length) + kThreads - 1) / kThreads);
  shape.block = dim3(kThreads);
  launch(count_prompt_kernel, shape, stream, args.history + row * args.history_stride, length,
         args.counts + row * args.counts_stride);
}

}  // namespace dlf::cuda
