#include "model/slots.h"

#include "model/adapter.h"
#include "model/weights.h"

namespace dlf {

std::vector<LinearSlot> linear_slots(const ModelSpec& spec, int64_t layer) {
  const int64_t hidden = spec.hidden_size;
  const AttentionSpec& attention = spec.attention;
  const FeedForwardSpec& feed_forward = spec.feed_forward;
  const int64_t q = attention.q_size();
  const int64_t kv = attention.kv_size();
  const int64_t inner = feed_forward.size;
  std::vector<LinearSlot> slots = {{"q", q, hidden, attention.bias, &LayerWeights::q, &LayerAdapter::q},
                                   {"k", kv, hidden, attention.bias, &LayerWeights::k, &LayerAdapter::k},
                                   {"v", kv, hidden, attention.bias, &LayerWeights::v, &LayerAdapter::v},
                                   {"o", hidden, q, attention.output_bias, &LayerWeights::o, &LayerAdapter::o}};
  if (spec.layers[layer].experts) {
    if (const int64_t shared = spec.experts.shared_size; shared > 0) {
      slots.push_back({"shared_gate", shared, hidden, false, &LayerWeights::gate, &LayerAdapter::gate});
      slots.push_back({"shared_up", shared, hidden, false, &LayerWeights::up, &LayerAdapter::up});
      slots.push_back({"shared_down", hidden, shared, false, &LayerWeights::down, &LayerAdapter::down});
    }
    return slots;
  }
  if (feed_forward.gated) {
    slots.push_back({"gate", inner, hidden, feed_forward.bias, &LayerWeights::gate, &LayerAdapter::gate});
  }
  slots.push_back({"up", inner, hidden, feed_forward.bias, &LayerWeights::up, &LayerAdapter::up});
  slots.push_back({"down", hidden, inner, feed_forward.bias, &LayerWeights::down, &LayerAdapter::down});
  return slots;
}

std::vector<ExpertSlot> expert_slots(const ModelSpec& spec) {
  const int64_t hidden = spec.hidden_size;
  const int64_t inner = spec.experts.size;
  return {{"gate", inner, hidden, &ExpertWeights::gate, &ExpertAdapter::gate},
          {"up", inner, hidden, &ExpertWeights::up, &ExpertAdapter::up},
          {"down", hidden, inner, &ExpertWeights::down, &ExpertAdapter::down}};
}

std::vector<NormSlot> norm_slots(const ModelSpec& spec) {
  const int64_t hidden = spec.hidden_size;
  const NormSpec& norm = spec.norm;
  const AttentionSpec& attention = spec.attention;
  std::vector<NormSlot> slots;
  if (norm.before) {
    slots.push_back({"attention_norm", hidden, norm.bias, &LayerWeights::attention_norm});
    if (!norm.shared) {
      slots.push_back({"feed_forward_norm", hidden, norm.bias, &LayerWeights::feed_forward_norm});
    }
  }
  if (norm.after) {
    slots.push_back({"attention_post_norm", hidden, norm.bias, &LayerWeights::attention_post_norm});
    slots.push_back({"feed_forward_post_norm", hidden, norm.bias, &LayerWeights::feed_forward_post_norm});
  }
  if (attention.head_norm != ops::HeadNorm::none) {
    const bool shared = attention.head_norm == ops::HeadNorm::shared;
    const auto add = [&](const char* name, int64_t size, NormWeights LayerWeights::* weights) {
      slots.push_back({name, shared ? attention.head_dim : size, attention.head_norm_bias, weights});
    };
    add("q_norm", attention.q_size(), &LayerWeights::q_norm);
    add("k_norm", attention.kv_size(), &LayerWeights::k_norm);
  }
  return slots;
}

std::string slot_of(int64_t layer, const char* name) { return std::to_string(layer) + "." + name; }

std::string slot_of(int64_t layer, int64_t expert, const char* name) {
  return slot_of(layer, "experts.") + std::to_string(expert) + "." + name;
}

std::vector<TensorSlot> tensor_slots(const ModelSpec& spec) {
  std::vector<TensorSlot> slots = {{"embedding", {spec.vocab_size, spec.hidden_size}}};
  if (spec.learned_positions > 0) {
    slots.push_back({"positions", {spec.learned_positions, spec.hidden_size}});
  }
  const auto add_norm = [&](const std::string& name, int64_t size, bool bias) {
    slots.push_back({name, {size}});
    if (bias) {
      slots.push_back({name + ".bias", {size}});
    }
  };
  for (int64_t layer = 0; layer < spec.layer_count(); ++layer) {
    for (const NormSlot& norm : norm_slots(spec)) {
      add_norm(slot_of(layer, norm.name), norm.size, norm.bias);
    }
    for (const LinearSlot& linear : linear_slots(spec, layer)) {
      slots.push_back({slot_of(layer, linear.name), {linear.out, linear.in}});
      if (linear.bias) {
        slots.push_back({slot_of(layer, linear.name) + ".bias", {linear.out}});
      }
    }
    if (spec.layers[layer].experts) {
      slots.push_back({slot_of(layer, "router"), {spec.experts.count, spec.hidden_size}});
      if (spec.experts.shared_router) {
        slots.push_back({slot_of(layer, "shared_router"), {1, spec.hidden_size}});
      }
      for (int64_t expert = 0; expert < spec.experts.count; ++expert) {
        for (const ExpertSlot& linear : expert_slots(spec)) {
          slots.push_back({slot_of(layer, expert, linear.name), {linear.out, linear.in}});
        }
      }
    }
  }
  add_norm("norm", spec.hidden_size, spec.norm.bias);
  if (spec.head_bias) {
    slots.push_back({"head.bias", {spec.vocab_size}});
  }
  slots.push_back({"head", {spec.vocab_size, spec.hidden_size}});
  return slots;
}

}  // namespace dlf
