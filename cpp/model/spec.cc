#include "model/spec.h"

#include <c10/util/Exception.h>

#include <algorithm>

#include "ops/router.h"

namespace dlf {

void check(const ModelSpec& spec) {
  const AttentionSpec& attention = spec.attention;
  TORCH_CHECK_VALUE(attention.head_dim > 0 && attention.head_dim % 2 == 0 && attention.head_dim <= 512, "head_dim is ",
                    attention.head_dim, "; it must be even and at most 512");
  TORCH_CHECK_VALUE(attention.kv_heads > 0 && attention.heads % attention.kv_heads == 0, "heads (", attention.heads,
                    ") is no multiple of kv_heads (", attention.kv_heads, ")");
  TORCH_CHECK_VALUE(attention.query_scalar > 0, "query_scalar is ", attention.query_scalar, "; it must be above 0");
  TORCH_CHECK_VALUE(
      attention.softcap >= 0 && spec.logit_softcap >= 0 && attention.clip >= 0 && spec.learned_positions >= 0,
      "softcaps, clip and learned_positions must be 0 or more");
  TORCH_CHECK_VALUE(spec.vocab_size > 0 && spec.hidden_size > 0 && spec.feed_forward.size > 0 && !spec.layers.empty(),
                    "vocab_size, hidden_size, the size of the feed-forward and the number of layers must be above 0");
  TORCH_CHECK_VALUE(!spec.norm.shared || (spec.parallel && spec.norm.before),
                    "only parallel blocks with norms before them can share one");
  const auto half = static_cast<size_t>(attention.head_dim / 2);
  for (const RopeSpec& rope : spec.ropes) {
    TORCH_CHECK_VALUE(rope.inv_freq.size() <= half, "inv_freq has ", rope.inv_freq.size(),
                      " entries; it can have at most head_dim / 2 = ", half);
    TORCH_CHECK_VALUE(rope.long_inv_freq.empty() || rope.long_inv_freq.size() == rope.inv_freq.size(),
                      "long_inv_freq has ", rope.long_inv_freq.size(), " entries and inv_freq ", rope.inv_freq.size());
    TORCH_CHECK_VALUE(rope.query_beta == 0 || rope.query_positions > 0, "query_positions is ", rope.query_positions,
                      "; it must be above 0");
  }
  const ExpertsSpec& experts = spec.experts;
  TORCH_CHECK_VALUE(experts.count >= 0 && experts.count <= ops::kMostExperts, "the number of experts is ",
                    experts.count, "; it can be at most ", ops::kMostExperts);
  TORCH_CHECK_VALUE(experts.count == 0 || (experts.chosen > 0 && experts.chosen <= experts.count && experts.size > 0),
                    "experts have the size ", experts.size, ", and a token gets ", experts.chosen, " of ",
                    experts.count, "; it gets from 1 to all, of a size above 0");
  TORCH_CHECK_VALUE(experts.count == 0 || spec.feed_forward.gated, "experts without gates are not supported");
  TORCH_CHECK_VALUE(experts.shared_size >= 0 && (experts.shared_size > 0 || !experts.shared_router),
                    "shared experts have the size ", experts.shared_size, "; it must be above 0 with a router");
  TORCH_CHECK_VALUE(experts.shared_size == 0 || !spec.norm.after, "norms after shared experts are not supported");
  TORCH_CHECK_VALUE(experts.shared_size == 0 || spec.dense_size() == experts.shared_size,
                    "shared experts have the size ", experts.shared_size, " and layers without experts ",
                    spec.feed_forward.size, "; they must be equal");
  for (const LayerSpec& layer : spec.layers) {
    TORCH_CHECK_VALUE(!layer.experts || experts.count > 0, "a layer has experts, and their number is 0");
    TORCH_CHECK_VALUE(layer.rope >= 0 && layer.rope < static_cast<int64_t>(spec.ropes.size()), "a layer has rope ",
                      layer.rope, "; number of ropes: ", spec.ropes.size());
    TORCH_CHECK_VALUE(layer.window >= 0, "a layer has the window ", layer.window, "; it must be 0 or more");
  }
}

void check_context(const ModelSpec& spec, int64_t max_context) {
  TORCH_CHECK_VALUE(spec.learned_positions == 0 || max_context <= spec.learned_positions, "max_context is ",
                    max_context, ", but the model has learned only ", spec.learned_positions, " positions");
}

int64_t ModelSpec::dense_size() const {
  const bool dense = std::any_of(layers.begin(), layers.end(), [](const LayerSpec& layer) { return !layer.experts; });
  return dense ? feed_forward.size : experts.shared_size;
}

}  // namespace dlf
