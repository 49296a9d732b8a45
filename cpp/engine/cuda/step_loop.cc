#include "engine/cuda/step_loop.h"

#include <c10/util/Exception.h>

#include <algorithm>
#include <array>
#include <bit>
#include <chrono>
#include <exception>
#include <span>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "engine/cuda/chunks.h"
#include "engine/cuda/device_step.h"
#include "engine/cuda/hook_rows.h"
#include "engine/cuda/memory_plan.h"
#include "engine/cuda/scorer.h"
#include "engine/cuda/sequences.h"
#include "engine/cuda/step_clock.h"
#include "engine/drafting/step_draft_policy.h"
#include "sampling/cuda/sampler_state.h"
#include "support/cuda/runtime.h"

namespace dlf::cuda {
namespace {

constexpr int kAhead = 1;  // steps queued behind the running one, so that the device never waits for the host
static_assert(kAhead + 2 <= kRing);
// Runs of one kind of step, kernel by kernel, before its graph is captured while requests wait. Most kinds are captured
// in a gap between requests, and a kind that comes once or twice is not worth a graph.
constexpr int64_t kRunsBeforeCapture = 4;
constexpr size_t kLookupReach = 2048;  // last tokens in which the host tries prompt lookup

bool is_masked(std::span<Sequence* const> sequences) {
  return std::any_of(sequences.begin(), sequences.end(), [](const Sequence* one) { return one->sampling.masked; });
}

class Backend final : public dlf::Backend {
 public:
  Backend(FusionPlan plan, const Models& models, EngineOptions options, const Adapters& adapters);
  ~Backend() override;

  void check(const Request& request) const override;
  BlockStore& cache(int64_t model) override { return *step_.models().all()[model].decoder; }
  ChunkReader& chunks() override { return chunks_; }
  ScoringRows& scoring() override { return scorer_; }
  void start(Sequence& sequence) override;
  void stop(Sequence& sequence) override;
  void decode(std::span<Sequence* const> sequences, StepOutputs& outputs, const StepCalls& calls) override;
  int64_t steps_at_once() const override { return kAhead + 1; }
  bool prepare() override;
  const StepTimings& timings() const override { return timings_; }

 private:
  // A step in flight.
  struct Flight {
    std::vector<int64_t> drafted;  // drafted tokens of the sequence in each slot
    DeviceStep::Kind kind;
    bool graph;
    int small_passes;
  };

  // What the host keeps of a sequence's start.
  struct Start {
    int64_t step;           // the first one that it takes part in
    uint32_t solvers;       // SolverKernels of its rule
    uint64_t small_models;  // bit m: some lane of its is on the small model m
  };

  Queue& main() { return step_.main(); }
  int64_t in_flight(const Sequence& sequence) const;
  bool wanted(std::span<Sequence* const> sequences) const;
  int batch_of(std::span<Sequence* const> sequences) const;
  bool holds(std::span<Sequence* const> sequences, int batch) const;
  DeviceStep::Kind kind_of(std::span<Sequence* const> sequences) const;
  StepDraft choose_draft(std::span<Sequence* const> sequences, int batch);
  void launch(std::span<Sequence* const> sequences, DeviceStep::Kind kind, const StepCalls& calls);
  template <typename Want>
  void mask(std::span<Sequence* const> sequences, int each, const CallMasks& call, Want&& want);
  void mask_drafted(Sequence& sequence, const DeviceStep::Kind& kind, int32_t* masks);
  void catch_up();
  void show(std::span<Sequence* const> sequences, const CallHook& hook);
  void collect(std::span<Sequence* const> sequences, bool followed, StepOutputs& outputs);
  void deliver(Sequence& sequence, int64_t step, StepOutputs& outputs);
  void take(Sequence& sequence, int64_t step, int token, StepOutput& output);
  void look_up(Sequence& sequence, int64_t token);
  void wait_for(int64_t steps, int64_t (SequenceMemory::*done)() const);

  StepClock clock_;
  DeviceStep step_;
  ChunkReader chunks_;
  Scorer scorer_;
  StepDraftPolicy policy_;
  std::array<Flight, kRing> flights_;
  std::vector<Start> started_;  // of the sequence in each slot
  std::vector<bool> failed_;    // likewise: whether its hook has failed
  StepMasks masks_;
  // What the small models have not read, since closed gates held them back.
  struct Unread {
    int tokens;  // of every sequence
    int batch;   // slots of the sequences
    int models;  // small models that read them
  };
  Unread unread_ = {};
  int caught_up_ = 0;  // passes of small models for that, since the last step was launched
  StepTimings timings_;
};

Backend::Backend(FusionPlan plan, const Models& models, EngineOptions options, const Adapters& adapters)
    : dlf::Backend(std::move(plan), models, std::move(options), adapters),
      step_(plan_, models, checked(plan_, models, options_, adapters), adapters),
      chunks_(plan_, step_.models(), clock_),
      scorer_(plan_, step_.models(), chunks_, clock_),
      policy_(plan_, {kStepDraft, most_tokens(options_), exact_tokens(plan_)}),
      started_(options_.max_batch),
      failed_(options_.max_batch),
      masks_(plan_.vocab) {
  main().synchronize();
  for (Flight& flight : flights_) {
    flight.drafted.resize(options_.max_batch);
  }
}

Backend::~Backend() {
  try {
    step_.models().synchronize();  // queued work writes to memory that is freed now
  } catch (const std::exception& error) {
    TORCH_WARN("the device failed before its work was done: ", error.what());
  }
}

void Backend::check(const Request& request) const {
  SamplerState::check_request(request.sampling, request.prompts[0].tokens, plan_.vocab, options_.max_context + 1,
                              kTopCapacity);
}

void Backend::start(Sequence& sequence) {
  const DeviceGuard guard(main().device());
  const auto slot = static_cast<int>(sequence.slot);
  catch_up();  // all sequences have the same number of unread tokens
  step_.sampler().set(slot, sequence.sampling, sequence.lanes[0].prompt.tokens, main(), sequence.chosen());
  StartArgs args = {};
  args.table = step_.table();
  args.slot = slot;
  args.step = static_cast<int32_t>(sequence.new_tokens);
  args.limit = static_cast<int32_t>(sequence.limit);
  args.max_draft = static_cast<int32_t>(sequence.draft.options.max_draft);
  args.rule = row_rule(sequence.rule, sequence.experts, static_cast<int>(plan_.experts.size()));
  int next = 0;
  for (size_t model = 0; model < step_.models().all().size(); ++model) {
    for (size_t lane = 0; lane < plan_.lane_model.size(); ++lane) {
      if (plan_.lane_model[lane] == static_cast<int64_t>(model)) {
        const Lane& of = sequence.lanes[lane];
        args.length[next++] = static_cast<int32_t>(of.used() ? of.prompt.size() + sequence.new_tokens : 0);
      }
    }
  }
  const std::vector<int64_t>& stops = sequence.sampling.stop_token_ids;
  args.stop_count = static_cast<int32_t>(stops.size());
  std::copy(stops.begin(), stops.end(), args.stops);
  start_sequence(args, main().stream());
  started_[slot] = {clock_.launched(), args.rule.kernels, 0};
  for (size_t lane = 0; lane < sequence.lanes.size(); ++lane) {
    if (sequence.lanes[lane].used() && !plan_.has_large(static_cast<int64_t>(lane))) {
      started_[slot].small_models |= uint64_t{1} << plan_.lane_model[lane];
    }
  }
}

void Backend::stop(Sequence& sequence) {
  const DeviceGuard guard(main().device());
  stop_sequence(step_.table(), static_cast<int>(sequence.slot), main().stream());
}

void Backend::decode(std::span<Sequence* const> sequences, StepOutputs& outputs, const StepCalls& calls) {
  const DeviceGuard guard(main().device());
  const DeviceStep::Kind kind = kind_of(sequences);
  step_.models().change_blocks();
  // A hook sees the steps of its request as they are decoded, a mask follows the tokens before it, and a step that may
  // hold waits until the gates are decided: then none is queued behind a running one.
  const bool masked = is_masked(sequences);
  const int64_t ahead = kind.shown || kind.holds || masked ? 0 : kAhead;
  while (clock_.on_their_way() <= ahead && wanted(sequences)) {
    launch(sequences, kind, calls);
  }
  if (clock_.on_their_way() > 0) {
    // A capture needs time, so the device must have a step to go on with.
    if (clock_.on_their_way() > ahead && step_.capture(kRunsBeforeCapture)) {
      clock_.disturb();
    }
    collect(sequences, kind.holds || masked, outputs);
    if (std::all_of(sequences.begin(), sequences.end(), [](const Sequence* one) { return one->finished(); })) {
      unread_ = {};  // nobody needs to catch up
    }
    chunks_.free(clock_.collected());
  } else {
    main().synchronize();  // only prompts were read: the host must not run further ahead
    chunks_.free(clock_.launched() + 1);
  }
}

bool Backend::prepare() {
  const DeviceGuard guard(main().device());
  return step_.capture(1);
}

// Steps in flight, each of which gives the sequence at least one token.
int64_t Backend::in_flight(const Sequence& sequence) const {
  return clock_.launched() - std::max(clock_.collected(), started_[sequence.slot].step);
}

// Whether some sequence needs a further step.
bool Backend::wanted(std::span<Sequence* const> sequences) const {
  return std::any_of(sequences.begin(), sequences.end(), [&](const Sequence* sequence) {
    return sequence->new_tokens + in_flight(*sequence) < sequence->limit;
  });
}

// Number of slots that a step works on: a power of two, or max_batch.
int Backend::batch_of(std::span<Sequence* const> sequences) const {
  int64_t slots = 1;
  for (const Sequence* sequence : sequences) {
    slots = std::max(slots, sequence->slot + 1);
  }
  int64_t batch = 1;
  while (batch < slots) {
    batch *= 2;
  }
  return static_cast<int>(std::min(batch, options_.max_batch));
}

// Whether the small models may be held back: every request that fuses has a gate that reads the large model's logits
// alone, no hook wants to see the others, and a pass reads several tokens of each sequence, so that catching up costs
// less than reading at once.
bool Backend::holds(std::span<Sequence* const> sequences, int batch) const {
  bool gated = false;
  for (const Sequence* sequence : sequences) {
    const bool fuses = !sequence->experts.empty();
    const Speculation& speculation = sequence->draft.options;
    const bool must_draft = speculation.max_draft > 0 && !speculation.adaptive;
    if (sequence->hook || must_draft || (fuses && !sequence->rule.gate.reads_large_alone())) {
      return false;
    }
    gated |= fuses;
  }
  return gated && step_.models().small_tokens(batch) > 1;
}

// Kind of the next step, but for its draft.
DeviceStep::Kind Backend::kind_of(std::span<Sequence* const> sequences) const {
  DeviceStep::Kind kind;
  kind.batch = batch_of(sequences);
  kind.holds = holds(sequences, kind.batch);
  for (const Sequence* sequence : sequences) {
    kind.solvers |= started_[sequence->slot].solvers;
    kind.traced |= sequence->trace;
    kind.shown |= sequence->hook;
  }
  return kind;
}

StepDraft Backend::choose_draft(std::span<Sequence* const> sequences, int batch) {
  for (Sequence* sequence : sequences) {
    sequence->draft.limit =
        std::max<int64_t>(std::min(sequence->draft.options.max_draft,
                                   sequence->draft_limit - sequence->new_tokens - in_flight(*sequence) - 1),
                          0);
  }
  return policy_.choose(sequences, batch);
}

// Launches one step for all slots.
void Backend::launch(std::span<Sequence* const> sequences, DeviceStep::Kind kind, const StepCalls& calls) {
  kind.draft = choose_draft(sequences, kind.batch);
  if (kind.shown) {
    kind.draft = {};  // the host does not know yet which drafted tokens are right
  }
  kind.holds &= kind.draft.count == 0;
  const bool masked = is_masked(sequences);
  kind.part = masked && kind.draft.count > 0 ? DeviceStep::Part::drafts : DeviceStep::Part::whole;
  Flight& flight = flights_[clock_.launched() % kRing];
  uint64_t small_models = 0;
  for (const Sequence* sequence : sequences) {
    flight.drafted[sequence->slot] = std::min<int64_t>(kind.draft.count, sequence->draft.limit);
    small_models |= started_[sequence->slot].small_models;
  }
  const int models = std::popcount(small_models);
  if (!kind.holds || step_.opens(kind.batch) || unread_.tokens == step_.models().small_tokens(kind.batch)) {
    catch_up();
  }
  flight.small_passes = DeviceStep::small_passes(kind, models) + std::exchange(caught_up_, 0);
  flight.kind = kind;
  flight.graph = step_.uses_graph(kind);
  if (masked) {
    mask(sequences, 1, calls.masks, [&](Sequence& sequence, int32_t* masks) {
      masks_.want(sequence, sequence.unmasked(), {}, 0, masks, step_.sampler().masks_stride());
    });
  }
  bool as_later = step_.launch(kind, [&] { show(sequences, calls.hook); });
  if (kind.part == DeviceStep::Part::drafts) {
    wait_for(clock_.launched() + 1, &SequenceMemory::drafts_shown);
    mask(sequences, kind.draft.count, calls.masks,
         [&](Sequence& sequence, int32_t* masks) { mask_drafted(sequence, kind, masks); });
    kind.part = DeviceStep::Part::verifies;
    flight.graph &= step_.uses_graph(kind);
    as_later &= step_.launch(kind);
  }
  if (!as_later) {
    clock_.disturb();  // the host learns late that the step before has ended
  }
  clock_.launch();
  if (kind.holds) {
    unread_ = {unread_.tokens + 1, kind.batch, models};
  }
}

// Has `each` masks of every sequence that has some written, and sends them: want(sequence, masks) says which.
template <typename Want>
void Backend::mask(std::span<Sequence* const> sequences, int each, const CallMasks& call, Want&& want) {
  SamplerState& sampler = step_.sampler();
  int64_t first = options_.max_batch;
  int64_t last = -1;
  for (Sequence* sequence : sequences) {
    if (sequence->sampling.masked) {
      want(*sequence, sampler.masks() + sequence->slot * each * sampler.masks_stride());
      first = std::min(first, sequence->slot);
      last = std::max(last, sequence->slot);
    }
  }
  masks_.ask(call);
  sampler.send_masks(first * each, (last + 1 - first) * each, main());
}

// Wants the masks after a sequence's next token, which the running step has chosen, and after each drafted one but the
// last: that mask is the next step's.
void Backend::mask_drafted(Sequence& sequence, const DeviceStep::Kind& kind, int32_t* masks) {
  const StepRecord& next = step_.memory().given(clock_.launched(), sequence.slot, 0).record;
  const int64_t positions =
      std::min<int64_t>({kind.draft.count, sequence.draft.options.max_draft, sequence.limit - sequence.new_tokens - 1});
  if (next.result != StepResult::token || positions <= 0) {
    return;  // it reads no drafted token
  }
  const std::array<int64_t, 1> decoded = {next.token};
  std::vector<int64_t> drafted;
  for (int64_t i = 0; i + 1 < positions; ++i) {
    const int32_t token = step_.memory().drafted()[i * kind.batch + sequence.slot];
    if (token < 0) {
      break;  // prompt lookup found no more
    }
    drafted.push_back(token);
  }
  masks_.want(sequence, decoded, drafted, 0, masks, step_.sampler().masks_stride());
}

// Has the small models read what they were held back from.
void Backend::catch_up() {
  if (unread_.tokens == 0) {
    return;
  }
  if (!step_.catch_up(unread_.batch, unread_.tokens)) {
    clock_.disturb();
  }
  caught_up_ += unread_.models;
  unread_ = {};
}

// Shows the hook the logits of the sequences that have one.
void Backend::show(std::span<Sequence* const> sequences, const CallHook& hook) {
  TORCH_CHECK(hook, "a request has a hook, but the step was called without");
  main().run([&] {
    for (const Sequence* sequence : sequences) {
      if (!sequence->hook || sequence->new_tokens >= sequence->limit) {
        continue;
      }
      HookRows rows;
      rows.request = sequence->request;
      rows.step = sequence->new_tokens;
      rows.tokens = {sequence->tokens.back()};
      const HookPlace place = {plan_, sequence->experts, main().device(), step_.fused(), sequence->slot, 1};
      failed_[sequence->slot] =
          !show_rows(hook, rows, place, [&](int64_t lane) { return step_.models().logits(lane); });
    }
  });
}

// Waits for the oldest step in flight, and reads its results.
void Backend::collect(std::span<Sequence* const> sequences, bool followed, StepOutputs& outputs) {
  const int64_t step = clock_.collected();
  wait_for(step + 1, &SequenceMemory::steps_done);
  const Flight& flight = flights_[step % kRing];
  if (const std::optional<double> seconds = clock_.collect(followed)) {
    policy_.add_time(flight.kind.batch, flight.kind.draft, *seconds);
  }
  timings_.drafted = flight.kind.draft.count;
  timings_.drafter = flight.kind.draft.drafter;
  timings_.graph = flight.graph;
  timings_.small_passes = flight.small_passes;
  for (Sequence* sequence : sequences) {
    if (started_[sequence->slot].step <= step) {
      deliver(*sequence, step, outputs);
    }
  }
}

void Backend::deliver(Sequence& sequence, int64_t step, StepOutputs& outputs) {
  const Flight& flight = flights_[step % kRing];
  const int64_t drafted = flight.drafted[sequence.slot];
  if (failed_[sequence.slot]) {
    failed_[sequence.slot] = false;
    stop(sequence);
    StepOutput& output = sequence.next_output(0, drafted);
    outputs.push_back(&output);
    return sequence.fail(output, row_failure(kHookFailed, "step " + std::to_string(sequence.new_tokens)));
  }
  const int64_t drafter = flight.kind.draft.drafter;
  const int most = std::min(kStepTokens, static_cast<int>(sequence.outputs.size()));
  int tokens = 0;
  while (tokens < most && !sequence.finished() &&
         step_.memory().given(step, sequence.slot, tokens).record.result != StepResult::none) {
    StepOutput& output = sequence.next_output(tokens, drafted);
    outputs.push_back(&output);
    take(sequence, step, tokens, output);
    ++tokens;
  }
  if (drafted > 0 && tokens > 0 && drafter != kPromptLookup && sequence.lanes[drafter].used()) {
    policy_.learn(sequence.draft, drafter, drafted, tokens - 1);
  }
}

// Reads one token that the step gave a sequence.
void Backend::take(Sequence& sequence, int64_t step, int token, StepOutput& output) {
  const auto& [record, top_tokens, top_logprobs] = step_.memory().given(step, sequence.slot, token);
  if (record.result == StepResult::bad_logits) {
    return sequence.fail(output, row_failure(record.failure, "step " + std::to_string(sequence.new_tokens)));
  }
  if (record.result == StepResult::bad_sample) {
    return sequence.fail(output, sample_failure(static_cast<SampleFailure>(record.failure), sequence.new_tokens));
  }
  output.token = record.token;
  output.own_token = !sequence.trace ? -1 : record.own_token >= 0 ? record.own_token : record.token;
  output.logprob = record.logprob;
  output.f = record.f;
  output.g = record.g;
  for (size_t i = 0; i < sequence.experts.size(); ++i) {
    output.alpha[i] = record.alpha[sequence.experts[i]];
  }
  sequence.draft.add_weights(output.alpha);
  output.top_tokens.assign(top_tokens.begin(), top_tokens.end());
  output.top_logprobs.assign(top_logprobs.begin(), top_logprobs.end());
  if (policy_.looks_up(sequence) && policy_.has_room(flights_[step % kRing].kind.batch)) {
    look_up(sequence, output.token);
  }
  sequence.append(output);
}

// Records whether prompt lookup would have drafted this token, whatever drafted it.
void Backend::look_up(Sequence& sequence, int64_t token) {
  const std::span<const int64_t> tokens(sequence.tokens);
  const PromptLookup::Match match = PromptLookup::find(tokens.last(std::min(tokens.size(), kLookupReach)));
  policy_.learn(sequence.draft, kPromptLookup, 1, match.length > 0 && match.next.front() == token ? 1 : 0);
}

// Waits until `steps` steps have written what the host reads. The device does not wait: it has more work already.
void Backend::wait_for(int64_t steps, int64_t (SequenceMemory::*done)() const) {
  using namespace std::chrono_literals;
  const auto begin = std::chrono::steady_clock::now();
  for (int64_t spins = 0; (step_.memory().*done)() < steps; ++spins) {
    if (std::chrono::steady_clock::now() - begin > 100us) {
      std::this_thread::sleep_for(20us);
    }
    if (spins % 256 == 255 && main().finished() && (step_.memory().*done)() < steps) {
      TORCH_CHECK(false, "the device finished its work without a result for step ", steps);
    }
  }
}

}  // namespace

std::unique_ptr<StepLoop> make_step_loop(FusionPlan plan, const Models& models, EngineOptions options,
                                         const Adapters& adapters) {
  return std::make_unique<StepLoop>(std::make_unique<Backend>(std::move(plan), models, std::move(options), adapters));
}

}  // namespace dlf::cuda
