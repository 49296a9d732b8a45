#include "model/slots.h"

#include "model/adapter.h"
#include "model/weights.h"

namespace dlf {

std::vector<LinearSlot> linear_slots(const ModelSpec& spec) {
  const int64_t hidden = spec.hidden_size;
  const AttentionSpec& attention = spec.attention;
  const int64_t q = attention.q_size();
  const int64_t kv = attention.kv_size();
  const auto& [inner, bias] = spec.feed_forward;
  return {{"q", q, hidden, attention.bias, &LayerWeights::q, &LayerAdapter::q},
          {"k", kv, hidden, attention.bias, &LayerWeights::k, &LayerAdapter::k},
          {"v", kv, hidden, attention.bias, &LayerWeights::v, &LayerAdapter::v},
          {"o", hidden, q, attention.output_bias, &LayerWeights::o, &LayerAdapter::o},
          {"gate", inner, hidden, bias, &LayerWeights::gate, &LayerAdapter::gate},
          {"up", inner, hidden, bias, &LayerWeights::up, &LayerAdapter::up},
          {"down", hidden, inner, bias, &LayerWeights::down, &LayerAdapter::down}};
}

std::vector<VectorSlot> vector_slots(const ModelSpec& spec) {
  std::vector<VectorSlot> slots = {{"attention_norm", spec.hidden_size, &LayerWeights::attention_norm},
                                   {"feed_forward_norm", spec.hidden_size, &LayerWeights::feed_forward_norm}};
  if (spec.attention.head_norm) {
    slots.push_back({"q_norm", spec.attention.head_dim, &LayerWeights::q_norm});
    slots.push_back({"k_norm", spec.attention.head_dim, &LayerWeights::k_norm});
  }
  return slots;
}

std::string slot_of(int64_t layer, const char* name) { return std::to_string(layer) + "." + name; }

std::vector<TensorSlot> tensor_slots(const ModelSpec& spec) {
  std::vector<TensorSlot> slots = {{"embedding", {spec.vocab_size, spec.hidden_size}}};
  const std::vector<LinearSlot> linears = linear_slots(spec);
  for (int64_t layer = 0; layer < spec.layer_count(); ++layer) {
    for (const VectorSlot& vector : vector_slots(spec)) {
      slots.push_back({slot_of(layer, vector.name), {vector.size}});
    }
    for (const LinearSlot& linear : linears) {
      slots.push_back({slot_of(layer, linear.name), {linear.out, linear.in}});
      if (linear.bias) {
        slots.push_back({slot_of(layer, linear.name) + ".bias", {linear.out}});
      }
    }
  }
  slots.push_back({"norm", {spec.hidden_size}});
  slots.push_back({"head", {spec.vocab_size, spec.hidden_size}});
  return slots;
}

}  // namespace dlf
