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

// Holds the one slot for scoring while it lives.
class ScoringSlot {
 public:
  explicit ScoringSlot(bool& taken) : taken_(taken) {
    TORCH_CHECK(!taken_, "the loop scores something already; score one after the other");
    taken_ = true;
  }
  ~ScoringSlot() { taken_ = false; }
  ScoringSlot(const ScoringSlot&) = delete;
  ScoringSlot& operator=(const ScoringSlot&) = delete;

 private:
  bool& taken_;
};

}  // namespace

StepLoop::StepLoop(std::unique_ptr<Backend> backend)
    : backend_(std::move(backend)),
      scheduler_(backend_->plan(), backend_->options().max_batch, budget_of(*backend_)),
      prompts_(backend_->plan(), backend_->options().prefix_cache_bytes, backend_->chunks()) {
  outputs_.reserve(backend_->options().max_batch + kMaxDraftRows);
}

// Destroys the backend first: it waits for queued work, which may copy from the prefix cache.
StepLoop::~StepLoop() { backend_.reset(); }

void StepLoop::add(Request request) {
  check_request(request, backend_->plan(), backend_->vocab_sizes(), backend_->options().max_context);
  backend_->check(request);
  scheduler_.add(make_sequence(std::move(request), backend_->plan(), backend_->options().max_context));
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
    scheduler_.admit();
    backend_->begin_step();
    for (Sequence* sequence : scheduler_.read_prompts(prompts_)) {
      backend_->start(*sequence);
    }
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
  const ScoringSlot slot(scoring_);
  std::vector<Lane> lanes = make_lanes(request.prompts);
  occupy(lanes, backend_->options().max_batch, plan);
  return dlf::score(request, std::move(lanes), score_rows(plan, backend_->vocab_sizes()), prompts_, backend_->scoring(),
                    poll);
}

}  // namespace dlf
