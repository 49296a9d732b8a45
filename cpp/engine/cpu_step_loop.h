#pragma once

#include <deque>
#include <memory>
#include <vector>

#include "engine/cpu_drafter.h"
#include "engine/cpu_scorer.h"
#include "engine/prompts.h"
#include "engine/step_loop.h"
#include "fusion/solver.h"
#include "support/thread_team.h"

namespace dlf {

struct CpuOptions {
  int64_t max_batch = 1;
  int64_t max_context = 2;
  int threads = 1;
  int64_t prefix_cache_bytes = 0;  // 0: every prompt is read from its beginning
};

// The step loop on the processor. A step without new sequences allocates nothing.
class CpuStepLoop final : public StepLoop {
 public:
  CpuStepLoop(FusionPlan plan, const Models& weights, const CpuOptions& options, const Adapters& adapters = {});

  void add(Request request) override;
  void cancel(int64_t request) override;
  bool idle() const override;
  const std::vector<const StepOutput*>& step() override;
  const StepTimings& timings() const override { return timings_; }
  std::vector<Score> score(const ScoreRequest& request, const Poll& poll) override;

 private:
  void retire();
  void admit();
  void draft();
  void forward();
  void solve();
  void sample();
  void verify(Sequence& sequence, const FusionResult* fused);
  bool append_token(Sequence& sequence, int64_t position, const FusionResult* fused);
  bool fills_context(const Sequence& sequence) const;
  void release(Sequence& sequence);
  void fail(Sequence& sequence, StepOutput& output, const std::string& what);

  FusionPlan plan_;
  std::vector<int64_t> vocab_sizes_;  // of the models
  int64_t max_batch_;
  int64_t max_context_;
  ThreadTeam team_;
  std::vector<CpuModel> models_;
  PromptReader prompts_;
  std::unique_ptr<CpuDrafter> drafter_;
  std::unique_ptr<CpuScorer> scorer_;     // null until something is scored
  std::unique_ptr<FusionSolver> solver_;  // null without experts
  std::deque<std::unique_ptr<Sequence>> waiting_;
  std::vector<std::unique_ptr<Sequence>> running_;
  std::vector<const StepOutput*> outputs_;
  StepTimings timings_;

  // What the solver reads and writes: for each running sequence a row, and one for each token of its draft.
  std::vector<const float*> expert_logits_;  // [max_batch + kDraftRows, experts]
  std::vector<const float*> base_logits_;
  std::vector<FusionInput> inputs_;
  std::vector<FusionResult> results_;
  std::vector<double> alpha_, target_f_, target_g_;  // likewise
  at::Tensor fused_;                                 // [max_batch + kDraftRows, vocab]
};

}  // namespace dlf
