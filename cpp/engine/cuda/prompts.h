#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <deque>
#include <memory>
#include <vector>

#include "engine/cuda/device_models.h"
#include "engine/plan.h"
#include "engine/prefix_cache.h"
#include "engine/sequence.h"
#include "support/cuda/runtime.h"

namespace dlf::cuda {

// One context on a model: its prompt, here, in pinned memory and on the model's device, and how far it is in the cache.
struct DeviceLane {
  Prompt prompt;
  at::Tensor staged, tokens;  // int32
  int64_t length = 0;
  int64_t piece = 0;  // of the prefix cache: the last one read

  bool used() const { return !prompt.tokens.empty(); }
  int64_t size() const { return static_cast<int64_t>(prompt.tokens.size()); }
};

// Reads prompts into the caches of their models, each on its own stream, between the steps of other sequences.
class PromptReader {
 public:
  PromptReader(const FusionPlan& plan, std::vector<DeviceModel>& models, int64_t prefix_cache_bytes);

  // One piece of each lane's prompt, so that a long one holds up neither other sequences nor Ctrl-C for long. True when
  // the last logits of all lanes are on their way. Counts the tokens that the prefix cache had. `step` is the next one
  // to be launched.
  bool read(std::vector<DeviceLane>& lanes, int row, int64_t step, int64_t& cached_tokens);

  // Frees what was evicted before steps that are done: a device may have copied from it until then.
  void release(int64_t steps_done);

 private:
  struct Place {  // of a lane's next piece
    DeviceModel& model;
    DeviceLane& lane;
    PiecePlace key;
    int row;  // of the model
    int64_t end;
    bool last;
  };

  Place place(std::vector<DeviceLane>& lanes, size_t lane, int row);
  bool restore(const Place& place, int64_t& cached_tokens);
  void read(const Place& place);
  void stage(const Place& place);
  void publish(const Place& place);
  float* logits(const Place& place);

  const FusionPlan& plan_;
  std::vector<DeviceModel>& models_;
  std::unique_ptr<Event> begun_;  // what comes before on the main stream
  PrefixCache prefixes_;
  struct Evicted {
    int64_t step;
    std::vector<at::Tensor> memory;
  };
  std::deque<Evicted> evicted_;
};

}  // namespace dlf::cuda
