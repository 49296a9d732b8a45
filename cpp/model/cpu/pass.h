#pragma once

#include <initializer_list>
#include <span>

#include "model/block.h"
#include "model/cpu/decoder.h"
#include "ops/cpu/linear.h"

namespace dlf {

// Runs the steps of block.h on the rows in the decoder's tokens_ and runs_.
class Decoder::Pass {
 public:
  Pass(Decoder& decoder, const ops::Places& places, bool is_prompt)
      : d_(decoder), places_(places), rows_(places.rows), is_prompt_(is_prompt) {}

  void embed();                                       // stream = the tokens' embeddings
  void head(int64_t first, int rows, float* logits);  // logits of `rows` rows from `first` on; ends the pass

  const ModelSpec& spec() const { return d_.weights_->spec(); }
  const LayerWeights& layer(int64_t index) const { return d_.weights_->layers[index]; }
  void norm_for_attention(int64_t index) { norm(layer(index).attention_norm); }
  void norm_for_feed_forward(int64_t index) { norm(layer(index).feed_forward_norm); }
  void project_heads(int64_t index);
  void rope_and_cache(int64_t index);
  void attend(int64_t index);
  void add_attention(int64_t index);
  void gate(int64_t index);
  void add_feed_forward(int64_t index);
  void route(int64_t index);
  void add_experts(int64_t index);

 private:
  // A product that adapters may add to.
  struct Adapted {
    LowRank LayerAdapter::* update;
    float* y;
  };

  ops::LinearArgs product(const LinearWeights& linear, float* y, bool accumulate = false) const;
  ops::LinearInputRows input_of(const float* x, const ops::LinearArgs& product);
  AttentionBuffers buffers(int64_t index);
  void norm(const NormWeights& weights);
  void norm(float* x, const NormWeights& weights);
  float* activated();
  const float* row_gate(int64_t index);
  bool adds_at_once() const { return !d_.branch_.defined(); }
  float* output();
  void add_output(const NormWeights& post_norm);
  void multiply(const float* x, std::span<const ops::LinearArgs> products);
  void add(int64_t index, LinearWeights LayerWeights::* weights, LowRank LayerAdapter::* update, const float* x,
           const NormWeights& post_norm);
  void adapt(int64_t index, const float* x, std::initializer_list<Adapted> products);
  void collect(std::vector<ops::LoraRun>& updates, const Run& run, const LowRank& update, float* y);
  void collect_experts(int64_t index);
  void add_updates(const float* x, int64_t in);
  void adapt_embedding(const ops::EmbeddingArgs& args);
  void adapt_head(float* logits);

  Decoder& d_;
  ops::Places places_;
  int rows_;
  bool is_prompt_;
};

}  // namespace dlf
