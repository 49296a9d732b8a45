#include "engine/cuda/step_loop.h"

#include <c10/util/Exception.h>

#include <algorithm>
#include <array>
#include <chrono>
#include <optional>
#include <span>
#include <thread>

#include "engine/cuda/device_step.h"
#include "engine/cuda/memory_plan.h"
#include "engine/cuda/prompts.h"
#include "engine/cuda/scorer.h"
#include "engine/cuda/sequences.h"
#include "engine/drafting/graph_draft_policy.h"
#include "engine/waiting.h"
#include "fusion/bad_model.h"
#include "sampling/cuda/sampler_state.h"
#include "support/cuda/runtime.h"

namespace dlf {
namespace cuda {
namespace {

constexpr int kAhead = 1;  // steps that wait on the device while one runs, so that it never waits for the host
static_assert(kAhead + 2 <= kRing);
// Steps of one kind that run kernel by kernel before a graph is captured while requests wait. Most kinds have theirs
// from a gap between requests, and one that comes once or twice is not worth it.
constexpr int64_t kRunsBeforeCapture = 4;
constexpr size_t kLookupReach = 2048;  // last tokens of a text in which the host looks what prompt lookup would say

// One request while it runs.
struct DeviceSequence {
  int64_t request = 0;
  std::vector<DeviceLane> lanes;
  std::vector<int> experts;
  RowRule rule;
  SamplingOptions sampling;
  int row = -1;
  int64_t limit = 0;      // tokens
  int64_t in_flight = 0;  // steps that it takes part in, which give a token each at least
  int64_t delivered = 0;  // tokens
  bool started = false;
  bool finished = false;
  Draft draft;
  std::vector<StepOutput> outputs;  // of a step
  std::vector<int64_t> tokens;      // so far, where prompt lookup may draft it
};

class CudaStepLoop final : public StepLoop {
 public:
  CudaStepLoop(FusionPlan plan, const Models& models, const CudaOptions& options, const Adapters& adapters);
  ~CudaStepLoop() override;

  void add(Request request) override;
  void cancel(int64_t request) override;
  bool idle() const override { return waiting_.empty() && running_.empty(); }
  const std::vector<const StepOutput*>& step() override;
  const StepTimings& timings() const override { return timings_; }
  bool prepare() override;
  std::vector<Score> score(const ScoreRequest& request, const Poll& poll) override;

 private:
  // A step that is on its way.
  struct Flight {
    std::vector<int64_t> requests;  // which one each row then belonged to
    std::vector<int64_t> drafted;   // tokens of each row
    DeviceStep::Kind kind;
    bool graph;
  };
  using Clock = std::chrono::steady_clock;

  Queue& main() { return step_.main(); }

  void decode();
  void abandon();
  void admit();
  void start(DeviceSequence& sequence);
  bool wanted() const;
  StepDraft choose_draft(int batch);
  void launch();
  void collect();
  void time(const Flight& flight);
  void disturb() { timed_from_ = launched_ + 1; }
  void look_up(DeviceSequence& sequence, int64_t token);
  void deliver(DeviceSequence& sequence, const Flight& flight);
  bool take(DeviceSequence& sequence, int token);
  void wait_for(int64_t steps);
  int batch_of_running() const;

  FusionPlan plan_;
  std::vector<int64_t> vocab_sizes_;  // of the models
  CudaOptions options_;
  int max_batch_;
  DeviceStep step_;
  PromptReader prompts_;
  GraphDraftPolicy policy_;
  Waiting<DeviceSequence> waiting_;
  std::vector<std::unique_ptr<DeviceSequence>> running_;
  std::vector<std::unique_ptr<DeviceSequence>> finished_;  // in the last step: their outputs can still be read
  std::array<Flight, kRing> flights_;
  int64_t launched_ = 0;
  int64_t collected_ = 0;
  std::vector<GraphDraftPolicy::Sequence> drafting_;
  std::optional<Clock::time_point> last_collected_;  // the device went on at once
  int64_t timed_from_ = 0;                           // steps before say nothing of how long their kind takes
  std::vector<const StepOutput*> outputs_;
  StepTimings timings_;
  bool scoring_ = false;
};

CudaStepLoop::CudaStepLoop(FusionPlan plan, const Models& models, const CudaOptions& options, const Adapters& adapters)
    : plan_(std::move(plan)),
      vocab_sizes_(vocab_sizes(models)),
      options_(options),
      max_batch_(static_cast<int>(options.max_batch)),
      step_(plan_, models, options, adapters),
      prompts_(plan_, step_.models().all(), options.prefix_cache_bytes),
      policy_(plan_, {kDraft, most_tokens(options), exact_tokens(plan_)}) {
  main().synchronize();
  for (Flight& flight : flights_) {
    flight.requests.resize(max_batch_);
    flight.drafted.resize(max_batch_);
  }
  outputs_.reserve(int64_t{max_batch_} * kStepTokens);
  drafting_.reserve(max_batch_);
}

CudaStepLoop::~CudaStepLoop() {
  try {
    step_.models().synchronize();  // what is still on its way writes to memory that goes now
  } catch (const std::exception& error) {
    TORCH_WARN("the device failed before its work was done: ", error.what());
  }
}

void CudaStepLoop::add(Request request) {
  check_request(request, plan_, vocab_sizes_, options_.max_context);
  SamplerState::check_request(request.sampling, request.prompts[0].tokens, plan_.vocab, options_.max_context + 1,
                              kTopCapacity);
  auto sequence = std::make_unique<DeviceSequence>();
  int64_t longest = 0;
  for (const Prompt& prompt : request.prompts) {
    longest = std::max(longest, static_cast<int64_t>(prompt.tokens.size()));
  }
  // The last place of the context is that of a token which is fed back; one more is chosen after it.
  sequence->limit = std::min(request.max_new_tokens, options_.max_context - longest + 1);
  sequence->request = request.id;
  for (Prompt& prompt : request.prompts) {
    sequence->lanes.emplace_back().prompt = std::move(prompt);
  }
  sequence->rule = row_rule(request.rule, request.experts, static_cast<int>(plan_.experts.size()));
  sequence->experts = std::move(request.experts);
  sequence->sampling = std::move(request.sampling);
  sequence->draft.options = request.speculation;
  sequence->draft.weight.resize(sequence->experts.size());
  sequence->draft.acceptance.assign(plan_.lane_model.size() + 1, Acceptance(Draft::kMemory));
  if (policy_.looks_up({&sequence->draft, &sequence->experts})) {
    sequence->tokens = sequence->lanes[0].prompt.tokens;
  }
  sequence->outputs.resize(kStepTokens);
  for (StepOutput& output : sequence->outputs) {
    output.request = request.id;
    output.alpha.resize(sequence->experts.size());
  }
  waiting_.push(std::move(sequence));
}

void CudaStepLoop::cancel(int64_t request) {
  waiting_.erase(request);
  const DeviceGuard guard(main().device());
  std::erase_if(running_, [&](const auto& sequence) {
    if (sequence->request != request) {
      return false;
    }
    stop_sequence(step_.table(), sequence->row, main().stream());
    if (sequence->delivered == 0) {
      main().synchronize();  // its prompt may still be on its way to the device
    }
    return true;
  });
}

const std::vector<const StepOutput*>& CudaStepLoop::step() {
  const DeviceGuard guard(main().device());
  outputs_.clear();
  finished_.clear();
  try {
    decode();
  } catch (...) {
    abandon();
    throw;
  }
  return outputs_;
}

void CudaStepLoop::decode() {
  admit();
  while (launched_ - collected_ <= kAhead && wanted()) {
    launch();
  }
  if (launched_ > collected_) {
    // The device has a step to go on with.
    if (launched_ - collected_ > kAhead && step_.capture(kRunsBeforeCapture)) {
      disturb();
    }
    collect();
    prompts_.release(collected_);
  } else {
    main().synchronize();  // only prompts were read: the host must not run further ahead
    prompts_.release(launched_ + 1);
  }
}

bool CudaStepLoop::prepare() {
  const DeviceGuard guard(main().device());
  return idle() && step_.capture(1);
}

// After a step that broke off: what is in the caches of the sequences is unknown, so that none can go on.
void CudaStepLoop::abandon() {
  outputs_.clear();
  try {
    while (!running_.empty()) {
      cancel(running_.back()->request);
    }
  } catch (const std::exception&) {  // the device failed, and what it failed of is on its way already
    running_.clear();
  }
}

std::vector<Score> CudaStepLoop::score(const ScoreRequest& request, const Poll& poll) {
  check_score(request, plan_, vocab_sizes_, options_.max_context);
  const ScoringPlace place(scoring_);
  disturb();  // what is scored takes time of its own
  const DeviceGuard guard(main().device());
  Scorer scorer(plan_, step_.models().all(), prompts_, max_batch_, launched_, score_rows(plan_, vocab_sizes_));
  return scorer.score(request, [&] {
    poll();
    disturb();
  });
}

// Places for those that wait, and a piece of each prompt that is still to be read.
void CudaStepLoop::admit() {
  while (!waiting_.empty() && static_cast<int>(running_.size()) < max_batch_) {
    std::unique_ptr<DeviceSequence> sequence = waiting_.pop();
    int row = 0;
    while (std::any_of(running_.begin(), running_.end(), [&](const auto& other) { return other->row == row; })) {
      ++row;
    }
    sequence->row = row;
    running_.push_back(std::move(sequence));
  }
  for (const std::unique_ptr<DeviceSequence>& sequence : running_) {
    if (sequence->started) {
      continue;
    }
    disturb();  // a prompt takes time of its own, before the next step
    if (prompts_.read(sequence->lanes, sequence->row, launched_, sequence->outputs[0].cached_tokens)) {
      start(*sequence);
    }
  }
}

void CudaStepLoop::start(DeviceSequence& sequence) {
  step_.sampler().set(sequence.row, sequence.sampling, sequence.lanes[0].prompt.tokens, main());
  StartArgs args = {};
  args.table = step_.table();
  args.row = sequence.row;
  args.limit = static_cast<int32_t>(sequence.limit);
  args.max_draft = static_cast<int32_t>(sequence.draft.options.max_draft);
  args.rule = sequence.rule;
  int next = 0;
  for (size_t model = 0; model < step_.models().all().size(); ++model) {
    for (size_t lane = 0; lane < plan_.lane_model.size(); ++lane) {
      if (plan_.lane_model[lane] == static_cast<int64_t>(model)) {
        args.length[next++] = static_cast<int32_t>(sequence.lanes[lane].size());
      }
    }
  }
  args.stop_count = static_cast<int32_t>(sequence.sampling.stop_token_ids.size());
  std::copy(sequence.sampling.stop_token_ids.begin(), sequence.sampling.stop_token_ids.end(), args.stops);
  start_sequence(args, main().stream());
  sequence.started = true;
}

// Whether some sequence needs a further step.
bool CudaStepLoop::wanted() const {
  return std::any_of(running_.begin(), running_.end(), [](const auto& sequence) {
    return sequence->started && sequence->delivered + sequence->in_flight < sequence->limit;
  });
}

int CudaStepLoop::batch_of_running() const {
  int rows = 1;
  for (const std::unique_ptr<DeviceSequence>& sequence : running_) {
    rows = std::max(rows, sequence->row + 1);
  }
  int batch = 1;
  while (batch < rows) {
    batch *= 2;
  }
  return std::min(batch, max_batch_);
}

StepDraft CudaStepLoop::choose_draft(int batch) {
  drafting_.clear();
  for (const std::unique_ptr<DeviceSequence>& sequence : running_) {
    if (!sequence->started) {
      continue;
    }
    Draft& draft = sequence->draft;
    const int64_t left = sequence->limit - sequence->delivered - sequence->in_flight - 1;
    draft.limit = std::clamp<int64_t>(left, 0, draft.options.max_draft);
    drafting_.push_back({&draft, &sequence->experts});
  }
  return policy_.choose(drafting_, batch);
}

// Puts one step for all rows on its way.
void CudaStepLoop::launch() {
  DeviceStep::Kind kind = {batch_of_running(), {}, 0};
  kind.draft = choose_draft(kind.batch);
  Flight& flight = flights_[launched_ % kRing];
  std::fill(flight.requests.begin(), flight.requests.end(), -1);
  for (const std::unique_ptr<DeviceSequence>& sequence : running_) {
    if (sequence->started) {
      flight.requests[sequence->row] = sequence->request;
      flight.drafted[sequence->row] = std::min<int64_t>(kind.draft.count, sequence->draft.limit);
      kind.solvers |= sequence->rule.kernel;
      ++sequence->in_flight;
    }
  }
  flight.kind = kind;
  flight.graph = step_.uses_graph(kind);
  if (!step_.launch(kind)) {
    disturb();  // the host sees late when the step before is done
  }
  ++launched_;
}

// Reads what the oldest step on its way has given, when it has.
void CudaStepLoop::collect() {
  wait_for(collected_ + 1);
  const Flight& flight = flights_[collected_ % kRing];
  time(flight);
  timings_.drafted = flight.kind.draft.count;
  timings_.drafter = flight.kind.draft.drafter;
  timings_.graph = flight.graph;
  for (int row = 0; row < max_batch_; ++row) {
    const auto sequence = std::find_if(running_.begin(), running_.end(), [&](const auto& candidate) {
      return candidate->row == row && candidate->request == flight.requests[row];
    });
    if (sequence == running_.end()) {  // nobody's, or of one that was cancelled meanwhile
      continue;
    }
    deliver(**sequence, flight);
    if ((*sequence)->finished) {
      finished_.push_back(std::move(*sequence));
      running_.erase(sequence);
    }
  }
  ++collected_;
}

// From the end of the step before it, if the device went on at once and did nothing else.
void CudaStepLoop::time(const Flight& flight) {
  const Clock::time_point now = Clock::now();
  if (last_collected_ && collected_ >= timed_from_) {
    policy_.add_time(flight.kind.batch, flight.kind.draft,
                     std::chrono::duration<double>(now - *last_collected_).count());
  }
  last_collected_ = launched_ > collected_ + 1 ? std::optional(now) : std::nullopt;
}

void CudaStepLoop::deliver(DeviceSequence& sequence, const Flight& flight) {
  const int64_t drafted = flight.drafted[sequence.row];
  int tokens = 0;
  while (tokens < kStepTokens && !sequence.finished && take(sequence, tokens)) {
    sequence.outputs[tokens].drafted = tokens == 0 ? drafted : -1;
    outputs_.push_back(&sequence.outputs[tokens]);
    ++tokens;
  }
  --sequence.in_flight;
  const int64_t drafter = flight.kind.draft.drafter;
  if (drafted > 0 && tokens > 0 && drafter != kPromptLookup && sequence.lanes[drafter].used()) {
    policy_.learn(sequence.draft, drafter, drafted, tokens - 1);
  }
  if (policy_.looks_up({&sequence.draft, &sequence.experts})) {
    for (int token = 0; token < tokens; ++token) {
      if (policy_.has_room(flight.kind.batch)) {
        look_up(sequence, sequence.outputs[token].token);
      }
      sequence.tokens.push_back(sequence.outputs[token].token);
    }
  }
}

// Sees whether prompt lookup would have said the token that comes next, whatever drafts it.
void CudaStepLoop::look_up(DeviceSequence& sequence, int64_t token) {
  const std::span<const int64_t> tokens(sequence.tokens);
  const PromptLookup::Match match = PromptLookup::find(tokens.last(std::min(tokens.size(), kLookupReach)));
  policy_.learn(sequence.draft, kPromptLookup, 1, match.length > 0 && match.next.front() == token ? 1 : 0);
}

// One token that the step gave a sequence. False if there was none any more.
bool CudaStepLoop::take(DeviceSequence& sequence, int token) {
  const StepRecord& record = step_.memory().record(collected_, sequence.row, token);
  StepOutput& output = sequence.outputs[token];
  switch (record.result) {
    case StepResult::none:
      return false;
    case StepResult::bad_logits:
      output.error = describe_bad_model(record.failure) + " at step " + std::to_string(sequence.delivered);
      output.finish = FinishReason::error;
      break;
    case StepResult::bad_sample:
      output.error = describe(static_cast<SampleFailure>(record.failure), sequence.delivered);
      output.finish = FinishReason::error;
      break;
    default:
      output.token = record.token;
      output.logprob = record.logprob;
      output.f = record.f;
      output.g = record.g;
      for (size_t i = 0; i < sequence.experts.size(); ++i) {
        output.alpha[i] = record.alpha[sequence.experts[i]];
      }
      sequence.draft.add_weights(output.alpha);
      const std::span<const int32_t> top_tokens = step_.memory().top_tokens(collected_, sequence.row, token);
      const std::span<const float> top_logprobs = step_.memory().top_logprobs(collected_, sequence.row, token);
      output.top_tokens.assign(top_tokens.begin(), top_tokens.end());
      output.top_logprobs.assign(top_logprobs.begin(), top_logprobs.end());
      output.finish = record.result == StepResult::stop     ? FinishReason::stop
                      : record.result == StepResult::length ? FinishReason::length
                                                            : FinishReason::none;
  }
  output.cached_tokens = sequence.outputs[0].cached_tokens;
  sequence.finished = output.finish != FinishReason::none;
  ++sequence.delivered;
  return true;
}

// Until so many steps have written their records. The device doesn't wait meanwhile: the next step is there already.
void CudaStepLoop::wait_for(int64_t steps) {
  using namespace std::chrono_literals;
  const auto begin = std::chrono::steady_clock::now();
  for (int64_t spins = 0; step_.memory().steps_done() < steps; ++spins) {
    if (std::chrono::steady_clock::now() - begin > 100us) {
      std::this_thread::sleep_for(20us);
    }
    if (spins % 256 == 255 && main().finished() && step_.memory().steps_done() < steps) {
      TORCH_CHECK(false, "the device finished its work without a result for step ", steps);
    }
  }
}

}  // namespace
}  // namespace cuda

std::unique_ptr<StepLoop> make_cuda_step_loop(FusionPlan plan, const Models& models, const CudaOptions& options,
                                              const Adapters& adapters) {
  check_plan(plan, models, adapters, options.max_batch, options.max_context);
  cuda::check_devices(plan, models, options, adapters);
  return std::make_unique<cuda::CudaStepLoop>(std::move(plan), models, options, adapters);
}

}  // namespace dlf
