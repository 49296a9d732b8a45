#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <functional>
#include <memory>
#include <vector>

#include "engine/cuda/sequences.h"
#include "engine/options.h"
#include "engine/plan.h"
#include "fusion/cuda/solver.h"
#include "model/cuda/decoder.h"
#include "support/cuda/runtime.h"

namespace dlf::cuda {

// A model, its stream, and its tensors on the large model's device.
struct DeviceModel {
  std::unique_ptr<Queue> queue;
  std::unique_ptr<Decoder> decoder;
  std::unique_ptr<Event> ready;  // its logits are there
  at::Tensor tokens, positions;  // the decoder's; of a remote one, the originals that it copies before a pass
  at::Tensor logits;             // of a remote one, the copy that the solver reads
  bool remote = false;           // on another device than the large model
  // Of a model with a TokenMap: its feed, on the large model's device; on its own its read, and its logits by the large
  // model's ids. None else.
  at::Tensor feed, read, gathered;

  bool mapped() const { return read.defined(); }
  int64_t vocab() const { return mapped() ? read.size(0) : decoder->vocab(); }  // of a row of logits
  // Logits by the large model's ids, on the model's device.
  float* own_logits() { return mapped() ? gathered.mutable_data_ptr<float>() : decoder->logits(); }
  // A row of the logits that the solver reads.
  at::Tensor logits_of(int64_t row) const {
    return remote     ? logits.narrow(0, row, 1)
           : mapped() ? gathered.narrow(0, row, 1)
                      : decoder->logits_of(static_cast<int>(row));
  }
  // Queues the gathering of rows of the decoder's logits; of those that are not idle if `active`.
  void gather(int64_t first_row, int64_t rows, bool active);
  void gather(const float* from, float* to, const int32_t* positions, int64_t rows);
};

// Tokens of each sequence that a pass of a model reads, counted as in Decoder::decode.
struct Pass {
  int first;
  int count;                  // 0: it does not run
  bool first_logits = false;  // whether only the first token gets logits
};

// The models of an engine, the small ones on streams of their own beside the large one's.
class DeviceModels {
 public:
  DeviceModels(const FusionPlan& plan, const Models& weights, const EngineOptions& options, const Adapters& adapters);

  std::vector<DeviceModel>& all() { return models_; }
  Queue& main() { return *models_[large_].queue; }  // everything else is queued here, too
  void synchronize();

  bool is_small(size_t model) const { return model != large_; }
  // Most tokens of each sequence that one pass of the small models reads bit-identical to single-token passes; 0 if
  // there are none.
  int small_tokens(int batch) const;

  // Queues a pass of each model over tokens of the first `batch` sequences.
  void forward(int batch, const std::function<Pass(size_t)>& pass_of);

  // Queues the changes of the models' blocks before what is queued next.
  void change_blocks();

  // A lane's logits on the large model's device, from its first row on; for kNoLane, a row of zeros for all rows.
  Logits logits(int64_t lane);
  // Copies the logits after a sequence's last accepted token to where those of its last token are.
  void keep_logits(int batch, const int32_t* active, const int32_t* accepted);

  std::vector<ModelRows> rows();

 private:
  const FusionPlan& plan_;
  size_t large_;
  std::vector<DeviceModel> models_;
  at::Tensor zeros_;              // [vocab], if an expert has no base
  std::unique_ptr<Event> begun_;  // marks the work queued before on the main stream
};

}  // namespace dlf::cuda
