#pragma once

#include <cstdint>
#include <span>
#include <utility>
#include <vector>

#include "engine/cache_size.h"
#include "engine/hook.h"
#include "engine/mask.h"
#include "engine/options.h"
#include "engine/plan.h"
#include "engine/prompt.h"
#include "engine/request.h"
#include "engine/scoring.h"
#include "engine/sequence.h"
#include "model/block_store.h"

namespace dlf {

// What a step asks its caller for.
struct StepCalls {
  CallHook hook = {};    // for requests that have a hook
  CallMasks masks = {};  // for requests whose sampling is masked
};

using StepOutputs = std::vector<const StepOutput*>;

// Decoders and kernels of one kind of device, and the order in which a step launches them.
class Backend {
 public:
  // Throws what check_plan() and check(options) throw.
  Backend(FusionPlan plan, const Models& models, EngineOptions options, const Adapters& adapters)
      : plan_(std::move(plan)),
        options_(std::move(options)),
        vocab_sizes_(dlf::vocab_sizes(models)),
        block_bytes_(dlf::block_bytes(models)) {
    dlf::check(options_);
    check_plan(plan_, models, adapters);
  }
  virtual ~Backend() = default;
  Backend(const Backend&) = delete;
  Backend& operator=(const Backend&) = delete;

  const FusionPlan& plan() const { return plan_; }
  const EngineOptions& options() const { return options_; }
  const std::vector<int64_t>& vocab_sizes() const { return vocab_sizes_; }  // of each model

  const std::vector<int64_t>& block_bytes() const { return block_bytes_; }  // of each model's KV cache

  // Throws a ValueError for a request that this backend cannot run.
  virtual void check(const Request& request) const = 0;

  virtual BlockStore& cache(int64_t model) = 0;
  virtual ChunkReader& chunks() = 0;
  virtual ScoringRows& scoring() = 0;

  // The parts of a step, in order: begin_step() frees the results of the last step; the loop reads prompts; start()
  // takes each sequence that has read its prompts and, if it was put back, its tokens; decode() gives the decoding
  // sequences their next tokens.
  virtual void begin_step() {}
  virtual void start(Sequence& sequence) = 0;
  virtual void decode(std::span<Sequence* const> sequences, StepOutputs& outputs, const StepCalls& calls) = 0;
  // Most steps of which decode() gives no results yet when it returns, and the one that it begins.
  virtual int64_t steps_at_once() const { return 1; }

  // Stops a sequence that has a slot. Results of steps that are on their way are lost.
  virtual void stop(Sequence& sequence) = 0;

  virtual bool prepare() { return false; }
  virtual const StepTimings& timings() const = 0;

 protected:
  const FusionPlan plan_;
  const EngineOptions options_;
  const std::vector<int64_t> vocab_sizes_;
  const std::vector<int64_t> block_bytes_;
};

}  // namespace dlf
