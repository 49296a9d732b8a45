#include "engine/step_loop_cuda.h"

#include <ATen/ops/empty.h>
#include <ATen/ops/full.h>
#include <ATen/ops/zeros.h>
#include <c10/util/Exception.h>

#include <algorithm>
#include <array>
#include <chrono>
#include <deque>
#include <map>
#include <span>
#include <thread>

#include "engine/device_room_cuda.h"
#include "engine/prompts_cuda.h"
#include "engine/scorer_cuda.h"
#include "engine/sequence_memory_cuda.h"
#include "engine/sequences_cuda.h"
#include "fusion/solver_cuda.h"
#include "model/decoder_cuda.h"
#include "sampling/sampler_state_cuda.h"
#include "support/cuda/runtime.h"

namespace dlf {
namespace cuda {
namespace {

constexpr int kAhead = 1;  // steps that wait on the device while one runs, so that it never waits for the host
static_assert(kAhead + 2 <= kRing);

// One request while it runs.
struct DeviceSequence {
  int64_t request = 0;
  std::vector<DeviceLane> lanes;
  std::vector<int> experts;
  SamplingOptions sampling;
  int row = -1;
  int64_t limit = 0;     // tokens
  int64_t launched = 0;  // steps that it takes part in
  int64_t delivered = 0;
  bool started = false;
  StepOutput output;
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
  std::vector<Score> score(const ScoreRequest& request, const Poll& poll) override;

 private:
  // Steps that are on their way: which request each row then belonged to.
  struct Flight {
    std::vector<int64_t> requests;
  };

  Queue& main() { return *models_[plan_.lane_model[0]].queue; }
  Logits lane_logits(int64_t lane);
  SequenceTable table();

  void admit();
  void start(DeviceSequence& sequence);
  bool wanted() const;
  void launch();
  void enqueue(int batch);
  void forward(int batch);
  void collect();
  void deliver(DeviceSequence& sequence);
  void wait_for(int64_t steps);
  int batch_of_running() const;

  FusionPlan plan_;
  std::vector<int64_t> vocab_sizes_;  // of the models
  CudaOptions options_;
  int max_batch_;
  std::vector<DeviceModel> models_;
  std::unique_ptr<Event> begun_;  // the step's tokens are known
  std::unique_ptr<SamplerState> sampler_;
  at::Tensor fused_, fusions_;
  std::unique_ptr<SequenceMemory> memory_;
  std::unique_ptr<PromptReader> prompts_;

  std::map<int, std::unique_ptr<Graph>> graphs_;  // by batch; null after the first step, which runs without
  std::deque<std::unique_ptr<DeviceSequence>> waiting_;
  std::vector<std::unique_ptr<DeviceSequence>> running_;
  std::vector<std::unique_ptr<DeviceSequence>> finished_;  // in the last step: their outputs can still be read
  std::array<Flight, kRing> flights_;
  int64_t launched_ = 0;
  int64_t collected_ = 0;
  std::vector<const StepOutput*> outputs_;
  StepTimings timings_;
};

int32_t* integers(at::Tensor& tensor) { return tensor.mutable_data_ptr<int32_t>(); }

CudaStepLoop::CudaStepLoop(FusionPlan plan, const Models& models, const CudaOptions& options, const Adapters& adapters)
    : plan_(std::move(plan)),
      vocab_sizes_(vocab_sizes(models)),
      options_(options),
      max_batch_(static_cast<int>(options.max_batch)) {
  const int device = options.devices.at(plan_.lane_model[0]);
  const auto ints = on_device(device).dtype(at::kInt);
  const auto floats = on_device(device).dtype(at::kFloat);
  for (size_t i = 0; i < models.size(); ++i) {
    const DecoderShape shape = shape_of(plan_, i, options);
    DeviceModel& model = models_.emplace_back();
    model.queue = std::make_unique<Queue>(options.devices.at(i));
    std::vector<int64_t> lane_adapter;
    for (size_t lane = 0; lane < plan_.lane_model.size(); ++lane) {
      if (plan_.lane_model[lane] == static_cast<int64_t>(i)) {
        lane_adapter.push_back(plan_.adapter_of(static_cast<int64_t>(lane)));
      }
    }
    model.queue->run([&] {
      const auto own = adapters.empty() ? Adapters::value_type() : adapters[i];
      model.decoder = std::make_unique<Decoder>(*models[i], shape, *model.queue, own, lane_adapter);
    });
    model.queue->synchronize();
    model.ready = std::make_unique<Event>(model.queue->device());
    model.remote = model.queue->device() != device;
    model.tokens = model.remote ? at::zeros({max_batch_}, ints) : model.decoder->tokens();
    model.positions = model.remote ? at::full({shape.rows()}, -1, ints) : model.decoder->positions();
    if (model.remote) {
      model.logits = at::empty({shape.rows() + shape.lanes, model.decoder->vocab()}, floats);
    }
  }
  begun_ = std::make_unique<Event>(device);
  main().run([&] {
    sampler_ = std::make_unique<SamplerState>(device, max_batch_, plan_.vocab, options.max_context + 1, kTopCapacity);
    const auto experts = static_cast<int>(plan_.experts.size());
    if (experts > 0) {
      const auto bytes = on_device(device).dtype(at::kByte);
      fused_ = at::zeros({max_batch_, plan_.vocab}, floats);
      fusions_ = at::zeros({static_cast<int64_t>(max_batch_ * sizeof(FusionRecord))}, bytes);
    }
  });
  memory_ = std::make_unique<SequenceMemory>(max_batch_, kTopCapacity, main());
  prompts_ = std::make_unique<PromptReader>(plan_, models_, options.prefix_cache_bytes);
  main().synchronize();
  for (Flight& flight : flights_) {
    flight.requests.resize(max_batch_);
  }
  outputs_.reserve(max_batch_);
}

CudaStepLoop::~CudaStepLoop() {
  try {
    for (DeviceModel& model : models_) {
      model.queue->synchronize();  // what is still on its way writes to memory that goes now
    }
  } catch (const std::exception& error) {
    TORCH_WARN("the device failed before its work was done: ", error.what());
  }
}

void CudaStepLoop::add(Request request) {
  check_request(request, plan_, vocab_sizes_, options_.max_context);
  TORCH_CHECK_NOT_IMPLEMENTED(request.speculation.max_draft == 0, "tokens are drafted on the CPU only so far");
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
  sequence->experts = std::move(request.experts);
  sequence->sampling = std::move(request.sampling);
  sequence->output.request = request.id;
  sequence->output.alpha.resize(sequence->experts.size());
  waiting_.push_back(std::move(sequence));
}

void CudaStepLoop::cancel(int64_t request) {
  std::erase_if(waiting_, [&](const auto& sequence) { return sequence->request == request; });
  const DeviceGuard guard(main().device());
  std::erase_if(running_, [&](const auto& sequence) {
    if (sequence->request != request) {
      return false;
    }
    stop_sequence(table(), sequence->row, main().stream());
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
  admit();
  while (launched_ - collected_ <= kAhead && wanted()) {
    launch();
  }
  if (launched_ > collected_) {
    collect();
    prompts_->release(collected_);
  } else {
    main().synchronize();  // only prompts were read: the host must not run further ahead
    prompts_->release(launched_ + 1);
  }
  return outputs_;
}

std::vector<Score> CudaStepLoop::score(const ScoreRequest& request, const Poll& poll) {
  check_score(request, plan_, vocab_sizes_, options_.max_context);
  const DeviceGuard guard(main().device());
  Scorer scorer(plan_, models_, *prompts_, max_batch_, launched_, score_rows(plan_, vocab_sizes_));
  return scorer.score(request, poll);
}

// Places for those that wait, and a piece of each prompt that is still to be read.
void CudaStepLoop::admit() {
  while (!waiting_.empty() && static_cast<int>(running_.size()) < max_batch_) {
    std::unique_ptr<DeviceSequence> sequence = std::move(waiting_.front());
    waiting_.pop_front();
    int row = 0;
    while (std::any_of(running_.begin(), running_.end(), [&](const auto& other) { return other->row == row; })) {
      ++row;
    }
    sequence->row = row;
    running_.push_back(std::move(sequence));
  }
  for (const std::unique_ptr<DeviceSequence>& sequence : running_) {
    if (!sequence->started &&
        prompts_->read(sequence->lanes, sequence->row, launched_, sequence->output.cached_tokens)) {
      start(*sequence);
    }
  }
}

void CudaStepLoop::start(DeviceSequence& sequence) {
  sampler_->set(sequence.row, sequence.sampling, sequence.lanes[0].prompt.tokens, main());
  StartArgs args = {};
  args.table = table();
  args.row = sequence.row;
  args.limit = static_cast<int32_t>(sequence.limit);
  for (const int expert : sequence.experts) {
    args.chosen |= 1U << expert;
  }
  int next = 0;
  for (size_t model = 0; model < models_.size(); ++model) {
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
  return std::any_of(running_.begin(), running_.end(),
                     [](const auto& sequence) { return sequence->started && sequence->launched < sequence->limit; });
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

// Puts one step for all rows on its way.
void CudaStepLoop::launch() {
  Flight& flight = flights_[launched_ % kRing];
  std::fill(flight.requests.begin(), flight.requests.end(), -1);
  for (const std::unique_ptr<DeviceSequence>& sequence : running_) {
    if (sequence->started) {
      flight.requests[sequence->row] = sequence->request;
      ++sequence->launched;
    }
  }
  const int batch = batch_of_running();
  const auto known = graphs_.find(batch);
  if (!options_.graph || known == graphs_.end()) {
    enqueue(batch);  // the first step of a batch also readies kernels and libraries for the capture
    graphs_[batch] = nullptr;
  } else {
    if (known->second == nullptr) {
      known->second = std::make_unique<Graph>();
      known->second->capture(main(), [&] { enqueue(batch); });
    }
    known->second->replay(main());
  }
  ++launched_;
}

// One step: the logits that the last forward pass left -> solve and fuse -> sample -> every model once.
void CudaStepLoop::enqueue(int batch) {
  const float* logits = lane_logits(0).data;
  int64_t stride = lane_logits(0).stride;
  if (!plan_.experts.empty()) {
    FusionArgs args = fusion_args(plan_.fusion, static_cast<int>(plan_.experts.size()));
    args.large = lane_logits(0);
    for (size_t t = 0; t < plan_.experts.size(); ++t) {
      args.experts[t] = lane_logits(plan_.experts[t].expert);
      args.bases[t] = lane_logits(plan_.experts[t].base);
    }
    args.fused = fused_.mutable_data_ptr<float>();
    args.fused_stride = plan_.vocab;
    args.records = static_cast<FusionRecord*>(fusions_.mutable_data_ptr());
    args.active = memory_->active();
    args.chosen = memory_->chosen();
    args.rows = batch;
    args.vocab = plan_.vocab;
    cuda::solve(args, main().stream());
    logits = args.fused;
    stride = args.fused_stride;
  }
  sampler_->sample(logits, stride, memory_->active(), batch, main());
  const auto* fusions = plan_.experts.empty() ? nullptr : static_cast<const FusionRecord*>(fusions_.const_data_ptr());
  memory_->advance(table(), *sampler_, fusions, static_cast<int>(plan_.experts.size()), batch, main().stream());
  forward(batch);
}

// The small models on their own streams beside the large one.
void CudaStepLoop::forward(int batch) {
  begun_->record(main());
  const auto large = static_cast<size_t>(plan_.lane_model[0]);
  for (size_t i = 0; i < models_.size(); ++i) {
    DeviceModel& model = models_[i];
    if (i == large) {
      continue;
    }
    model.queue->wait(*begun_);
    const int64_t rows = batch * model.decoder->lanes();
    if (model.remote) {
      model.queue->copy(model.decoder->tokens().mutable_data_ptr(), model.tokens.const_data_ptr(), batch * 4);
      model.queue->copy(model.decoder->positions().mutable_data_ptr(), model.positions.const_data_ptr(), rows * 4);
    }
    model.decoder->decode(batch);
    if (model.remote) {
      model.queue->copy(model.logits.mutable_data_ptr(), model.decoder->logits(), rows * model.decoder->vocab() * 4);
    }
    model.ready->record(*model.queue);
  }
  models_[large].decoder->decode(batch);
  for (size_t i = 0; i < models_.size(); ++i) {
    if (i != large) {
      main().wait(*models_[i].ready);
    }
  }
}

// Reads what the oldest step on its way has given, when it has.
void CudaStepLoop::collect() {
  wait_for(collected_ + 1);
  const Flight& flight = flights_[collected_ % kRing];
  for (int row = 0; row < max_batch_; ++row) {
    const auto sequence = std::find_if(running_.begin(), running_.end(), [&](const auto& candidate) {
      return candidate->row == row && candidate->request == flight.requests[row];
    });
    if (sequence == running_.end()) {  // nobody's, or of one that was cancelled meanwhile
      continue;
    }
    deliver(**sequence);
    if ((*sequence)->output.finish != FinishReason::none) {
      finished_.push_back(std::move(*sequence));
      running_.erase(sequence);
    }
  }
  ++collected_;
}

void CudaStepLoop::deliver(DeviceSequence& sequence) {
  const StepRecord& record = memory_->record(collected_, sequence.row);
  StepOutput& output = sequence.output;
  switch (record.result) {
    case StepResult::none:
      return;  // it had already ended on the device
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
      const std::span<const int32_t> top_tokens = memory_->top_tokens(collected_, sequence.row);
      const std::span<const float> top_logprobs = memory_->top_logprobs(collected_, sequence.row);
      output.top_tokens.assign(top_tokens.begin(), top_tokens.end());
      output.top_logprobs.assign(top_logprobs.begin(), top_logprobs.end());
      output.finish = record.result == StepResult::stop     ? FinishReason::stop
                      : record.result == StepResult::length ? FinishReason::length
                                                            : FinishReason::none;
  }
  ++sequence.delivered;
  outputs_.push_back(&output);
}

// Until so many steps have written their records. The device doesn't wait meanwhile: the next step is there already.
void CudaStepLoop::wait_for(int64_t steps) {
  using namespace std::chrono_literals;
  const auto begin = std::chrono::steady_clock::now();
  for (int64_t spins = 0; memory_->steps_done() < steps; ++spins) {
    if (std::chrono::steady_clock::now() - begin > 100us) {
      std::this_thread::sleep_for(20us);
    }
    if (spins % 256 == 255 && main().finished() && memory_->steps_done() < steps) {
      TORCH_CHECK(false, "the device finished its work without a result for step ", steps);
    }
  }
}

Logits CudaStepLoop::lane_logits(int64_t lane) {
  const DeviceModel& model = models_[plan_.lane_model[lane]];
  const float* logits = model.remote ? model.logits.const_data_ptr<float>() : model.decoder->logits();
  const int64_t vocab = model.decoder->vocab();
  return {logits + plan_.index_of(lane) * vocab, model.decoder->lanes() * vocab};
}

SequenceTable CudaStepLoop::table() {
  std::vector<ModelRows> rows;
  rows.reserve(models_.size());
  for (DeviceModel& model : models_) {
    rows.push_back({integers(model.tokens), integers(model.positions), model.decoder->lanes()});
  }
  return memory_->table(rows);
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
