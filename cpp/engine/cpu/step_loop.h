#pragma once

#include <memory>
#include <vector>

#include "engine/cpu/drafter.h"
#include "engine/cpu/fusion_rows.h"
#include "engine/cpu/prompts.h"
#include "engine/cpu/scorer.h"
#include "engine/step_loop.h"
#include "engine/waiting.h"
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
  void decode();
  void abandon();
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
  bool scoring_ = false;
  std::unique_ptr<CpuScorer> scorer_;  // null until something is scored
  std::unique_ptr<FusionRows> fusion_;
  Waiting<Sequence> waiting_;
  std::vector<std::unique_ptr<Sequence>> running_;
  std::vector<const StepOutput*> outputs_;
  StepTimings timings_;
};

}  // namespace dlf
