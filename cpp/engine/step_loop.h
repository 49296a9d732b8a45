#pragma once

#include <cstdint>
#include <memory>
#include <vector>

#include "engine/backend.h"
#include "engine/prompt.h"
#include "engine/request.h"
#include "engine/scheduler.h"
#include "engine/scoring.h"

namespace dlf {

// Decodes all running sequences one token further at each step, or more where tokens were drafted. The scheduler says
// what a step does and the backend does it: cpu::make_step_loop() and cuda::make_step_loop() give loops.
class StepLoop {
 public:
  explicit StepLoop(std::unique_ptr<Backend> backend);
  ~StepLoop();
  StepLoop(const StepLoop&) = delete;
  StepLoop& operator=(const StepLoop&) = delete;

  void add(Request request);     // waits until one of max_batch slots is free
  void cancel(int64_t request);  // frees its slot; unknown ids are ignored
  bool idle() const { return scheduler_.idle(); }

  // One step; the outputs, those of a sequence in their order, hold until the loop is called again. A sequence whose
  // output says why it finished has left; where a step throws, all that were running have.
  const StepOutputs& step();
  const StepTimings& timings() const { return backend_->timings(); }

  // Does something that a later step would otherwise take time for. Called while the loop is idle, until there is
  // nothing left to do; returns whether there was.
  bool prepare() { return idle() && backend_->prepare(); }

  // Scores the continuations of a request, at once: it has a slot of its own, and neither waits for sequences nor moves
  // them on. The poll may: it can add, cancel and step, but not score.
  std::vector<Score> score(const ScoreRequest& request, const Poll& poll);

 private:
  void abandon();

  std::unique_ptr<Backend> backend_;
  Scheduler scheduler_;
  PromptReader prompts_;
  StepOutputs outputs_;
  bool scoring_ = false;
};

}  // namespace dlf
