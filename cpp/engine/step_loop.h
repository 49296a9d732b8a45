#pragma once

#include <array>
#include <deque>
#include <memory>
#include <vector>

#include "engine/plan.h"
#include "engine/sequence.h"
#include "fusion/solver.h"
#include "model/decoder.h"
#include "support/thread_team.h"

namespace dlf {

struct Request {
  int64_t id = 0;
  std::vector<std::vector<int64_t>> prompts;  // one for each lane
  SamplingOptions sampling;
  int64_t max_new_tokens = 0;
};

// Seconds that the last step spent in each of its parts.
struct StepTimings {
  double large = 0;
  double small = 0;
  double solve = 0;
  double sample = 0;
};

// Decodes all running sequences one token further at each step:
//   forward every model once (all lanes of all sequences in one batch) -> solve and fuse -> sample -> append.
// A step without new sequences allocates nothing.
class StepLoop {
 public:
  StepLoop(FusionPlan plan, std::vector<std::shared_ptr<const Weights>> models, int64_t max_batch, int64_t max_context,
           int threads);

  void add(Request request);     // waits until one of max_batch places is free
  void cancel(int64_t request);  // frees its places; unknown ids are ignored
  bool idle() const;             // nothing is left to decode

  // One step; the outputs hold until the next one. A sequence whose output says why it finished has left.
  const std::vector<const StepOutput*>& step();
  const StepTimings& timings() const { return timings_; }
  int64_t max_context() const { return max_context_; }

 private:
  // A model, the lanes that run on it, and their logits of this step.
  struct Model {
    std::unique_ptr<Decoder> decoder;
    at::Tensor logits;          // [max_batch * lanes, vocab]
    std::vector<Row> rows;      // tokens to decode in this step
    std::vector<Lane*> owners;  // whose rows they are
  };

  void retire();
  void admit();
  void forward();
  void prefill(Sequence& sequence);
  void solve();
  void sample();
  void append_token(Sequence& sequence, const float* logits);
  void release(Sequence& sequence);
  void fail(Sequence& sequence, const std::string& what);

  FusionPlan plan_;
  int64_t max_batch_;
  int64_t max_context_;
  ThreadTeam team_;
  std::vector<Model> models_;
  std::unique_ptr<FusionSolver> solver_;  // null without experts
  std::deque<std::unique_ptr<Sequence>> waiting_;
  std::vector<std::unique_ptr<Sequence>> running_;
  std::vector<const StepOutput*> outputs_;
  StepTimings timings_;

  // What the solver reads and writes, a row for each running sequence.
  std::vector<const float*> expert_logits_;  // [max_batch, experts]
  std::vector<const float*> base_logits_;
  std::vector<FusionInput> inputs_;
  std::vector<FusionResult> results_;
  std::vector<double> alpha_, target_f_, target_g_;  // [max_batch, experts]
  at::Tensor fused_;                                 // [max_batch, vocab]
};

}  // namespace dlf
