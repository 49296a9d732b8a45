#include "engine/step_loop.h"

#include <c10/util/Exception.h>

#include <exception>
#include <utility>

namespace dlf {
namespace {

int64_t budget_of(Backend& backend) {
  const int64_t budget = backend.options().prompt_budget;
  return budget > 0 ? budget : backend.chunks().most_tokens();
}

std::vector<BlockStore*> caches_of(Backend& backend) {
  std::vector<BlockStore*> caches;
  caches.reserve(backend.vocab_sizes().size());
  for (size_t model = 0; model < backend.vocab_sizes().size(); ++model) {
    caches.push_back(&backend.cache(static_cast<int64_t>(model)));
  }
  return caches;
}

// Holds the one slot for scoring, and the memory of its lanes, while it lives.
class ScoringSlot {
 public:
  ScoringSlot(bool& taken, CacheMemory& memory, std::vector<Lane>& lanes)
      : taken_(taken), memory_(memory), lanes_(lanes) {
    TORCH_CHECK(!taken_, "the loop scores something already; score one after the other");
    taken_ = true;
  }
  ~ScoringSlot() {
    memory_.release(lanes_);
    taken_ = false;
  }
  ScoringSlot(const ScoringSlot&) = delete;
  ScoringSlot& operator=(const ScoringSlot&) = delete;

 private:
  bool& taken_;
  CacheMemory& memory_;
  std::vector<Lane>& lanes_;
};

}  // namespace

StepLoop::StepLoop(std::unique_ptr<Backend> backend)
    : backend_(std::move(backend)),
      memory_(backend_->plan(), backend_->options(), caches_of(*backend_), backend_->chunks()),
      scheduler_(backend_->plan(), backend_->options().max_batch, budget_of(*backend_), memory_,
                 backend_->steps_at_once()),
      prompts_(backend_->plan(), backend_->block_bytes(), memory_, backend_->chunks()) {
  outputs_.reserve(backend_->options().max_batch + kMaxDraftRows);
}

// Destroys the backend first: it waits for queued work, which may copy logits of the prefix cache.
StepLoop::~StepLoop() { backend_.reset(); }

void StepLoop::add(Request request) {
  check_request(request, backend_->plan(), backend_->vocab_sizes(), backend_->options().max_context);
  backend_->check(request);
  auto sequence = make_sequence(std::move(request), backend_->plan(), backend_->options().max_context);
  memory_.check_fits(sequence->lanes);
  scheduler_.add(std::move(sequence));
}

void StepLoop::cancel(int64_t request) {
  for (const std::unique_ptr<Sequence>& sequence : scheduler_.slots()) {
    if (sequence && sequence->request == request) {
      backend_->stop(*sequence);
    }
  }
  scheduler_.cancel(request);
}

const StepOutputs& StepLoop::step(const StepCalls& calls) {
  outputs_.clear();
  try {
    scheduler_.admit(prompts_);
    backend_->begin_step();
    for (Sequence* sequence : scheduler_.read_prompts(prompts_)) {
      backend_->start(*sequence);
    }
    scheduler_.make_room([&](Sequence& sequence) { stop(sequence); });
    backend_->decode(scheduler_.decoding(), outputs_, calls);
  } catch (...) {
    abandon();
    throw;
  }
  return outputs_;
}

// Ends all sequences after a step that failed: the contents of their caches are unknown.
void StepLoop::abandon() {
  outputs_.clear();
  try {
    for (const std::unique_ptr<Sequence>& sequence : scheduler_.slots()) {
      if (sequence) {
        backend_->stop(*sequence);
      }
    }
  } catch (const std::exception&) {  // NOLINT(bugprone-empty-catch): a device that failed; the step throws why
  }
  scheduler_.clear();
}

std::vector<Score> StepLoop::score(const ScoreRequest& request, const Poll& poll) {
  const FusionPlan& plan = backend_->plan();
  check_score(request, plan, backend_->vocab_sizes(), backend_->options().max_context);
  const EngineOptions& options = backend_->options();
  std::vector<Lane> lanes = make_lanes(request.prompts, request.longest() - 1, options.max_context);
  memory_.check_fits(lanes);
  occupy(lanes, options.max_batch, plan);
  const ScoringSlot slot(scoring_, memory_, lanes);
  scheduler_.make_room(lanes, [&](Sequence& sequence) { stop(sequence); });
  return dlf::score(request, lanes, score_rows(plan, backend_->vocab_sizes()), prompts_, backend_->scoring(), poll);
}

}  // namespace dlf
