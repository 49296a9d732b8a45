#include "model/spec.h"

#include <c10/util/Exception.h>

namespace dlf {

void check(const ModelSpec& spec) {
  const AttentionSpec& attention = spec.attention;
  TORCH_CHECK_VALUE(attention.head_dim > 0 && attention.head_dim % 2 == 0 && attention.head_dim <= 512, "head_dim is ",
                    attention.head_dim, "; it must be even and at most 512");
  TORCH_CHECK_VALUE(attention.kv_heads > 0 && attention.heads % attention.kv_heads == 0, "heads (", attention.heads,
                    ") is no multiple of kv_heads (", attention.kv_heads, ")");
  TORCH_CHECK_VALUE(attention.query_scalar > 0, "query_scalar is ", attention.query_scalar, "; it must be above 0");
  TORCH_CHECK_VALUE(spec.vocab_size > 0 && spec.hidden_size > 0 && spec.feed_forward.size > 0 && !spec.layers.empty(),
                    "vocab_size, hidden_size, the size of the feed-forward and the number of layers must be above 0");
  const auto half = static_cast<size_t>(attention.head_dim / 2);
  for (const RopeSpec& rope : spec.ropes) {
    TORCH_CHECK_VALUE(rope.inv_freq.size() == half && (rope.long_inv_freq.empty() || rope.long_inv_freq.size() == half),
                      "inv_freq must have head_dim / 2 = ", half, " entries");
  }
  for (const LayerSpec& layer : spec.layers) {
    TORCH_CHECK_VALUE(layer.rope >= 0 && layer.rope < static_cast<int64_t>(spec.ropes.size()), "a layer has rope ",
                      layer.rope, "; number of ropes: ", spec.ropes.size());
    TORCH_CHECK_VALUE(layer.window >= 0, "a layer has the window ", layer.window, "; it must be 0 or more");
  }
}

}  // namespace dlf
