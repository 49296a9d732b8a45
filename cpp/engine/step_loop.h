#pragma once

#include <cstdint>
#include <memory>
#include <vector>

#include "engine/plan.h"
#include "engine/score.h"
#include "engine/sequence.h"
#include "model/adapter.h"
#include "model/weights.h"

namespace dlf {

inline constexpr int64_t kMostContext = int64_t{1} << 24;

using Models = std::vector<std::shared_ptr<const Weights>>;
using Adapters = std::vector<std::vector<std::shared_ptr<const Adapter>>>;  // of each model; empty where there are none

// Seconds that the last step spent in each of its parts; all zero on a GPU, where nobody waits for a part. There, what
// kind of step it was.
struct StepTimings {
  double large = 0;
  double small = 0;
  double solve = 0;
  double sample = 0;
  int drafted = 0;      // tokens of each sequence
  int64_t drafter = 0;  // if there are any: a lane, or kPromptLookup
  bool graph = false;   // it was one launch
};

// Decodes all running sequences one token further at each step, or more where tokens were drafted:
//   draft -> forward every model once (all lanes of all sequences in one batch) -> solve and fuse -> sample -> append.
// CpuStepLoop does it on the processor, make_cuda_step_loop gives one that does it on GPUs.
class StepLoop {
 public:
  virtual ~StepLoop() = default;

  virtual void add(Request request) = 0;     // waits until one of max_batch places is free
  virtual void cancel(int64_t request) = 0;  // frees its places; unknown ids are ignored
  virtual bool idle() const = 0;             // nothing is left to decode

  // One step; the outputs, those of a sequence in their order, hold until the loop is called again. A sequence whose
  // output says why it finished has left; where a step throws, all that were running have.
  virtual const std::vector<const StepOutput*>& step() = 0;
  virtual const StepTimings& timings() const = 0;

  // Does something that a later step would otherwise take time for. Called while the loop is idle, until there is
  // nothing left to do; returns whether there was.
  virtual bool prepare() { return false; }

  // Scores the continuations of a request, at once: it has places of its own, and neither waits for sequences nor
  // moves them on. The poll may: it can add, cancel and step, but not score.
  virtual std::vector<Score> score(const ScoreRequest& request, const Poll& poll) = 0;
};

// Throw a ValueError or IndexError for what no step loop can run.
void check_plan(const FusionPlan& plan, const Models& models, const Adapters& adapters, int64_t max_batch,
                int64_t max_context);
void check_request(const Request& request, const FusionPlan& plan, const std::vector<int64_t>& vocab_sizes,
                   int64_t max_context);
void check_score(const ScoreRequest& request, const FusionPlan& plan, const std::vector<int64_t>& vocab_sizes,
                 int64_t max_context);

std::vector<int64_t> vocab_sizes(const Models& models);

}  // namespace dlf
