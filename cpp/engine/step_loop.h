#pragma once

#include <cstdint>
#include <memory>
#include <vector>

#include "engine/backend.h"
#include "engine/cache_memory.h"
#include "engine/prompt.h"
#include "engine/request.h"
#include "engine/scheduler.h"
#include "engine/scoring.h"

namespace dlf {

// Decodes all running sequences one token further at each step, or more if tokens were drafted. The scheduler decides
// what a step does and the backend does it. cpu::make_step_loop() and cuda::make_step_loop() make loops.
class StepLoop {
 public:
  explicit StepLoop(std::unique_ptr<Backend> backend);
  ~StepLoop();
  StepLoop(const StepLoop&) = delete;
  StepLoop& operator=(const StepLoop&) = delete;

  void add(Request request);     // it waits until one of max_batch slots and memory are free
  void cancel(int64_t request);  // frees its slot; unknown ids are ignored
  bool idle() const { return scheduler_.idle(); }
  int64_t put_back() const { return scheduler_.put_back(); }  // how often a request was, for lack of memory
  // Share of the KV cache that requests hold. One that has ended leaves its memory to the next step.
  double cache_use() const { return idle() ? 0 : memory_.use(); }

  // Runs one step. The outputs, in order for each sequence, are valid until the loop is called again. A sequence whose
  // output has a finish reason has left; if a step throws, all running sequences have left.
  const StepOutputs& step(const StepCalls& calls = {});
  const StepTimings& timings() const { return backend_->timings(); }

  // Does some work that would otherwise slow down a later step; returns whether there was any. Called while the loop is
  // idle, until it returns false.
  bool prepare() { return idle() && backend_->prepare(); }

  // Scores the continuations of a request, in a slot of its own: it neither waits for sequences nor advances them. The
  // poll may add, cancel and step, but not score.
  std::vector<Score> score(const ScoreRequest& request, const Poll& poll);

 private:
  void abandon();
  void stop(Sequence& sequence) { backend_->stop(sequence); }

  std::unique_ptr<Backend> backend_;
  CacheMemory memory_;
  Scheduler scheduler_;
  PromptReader prompts_;
  StepOutputs outputs_;
  bool scoring_ = false;
};

}  // namespace dlf
