// Compares the shards of a split model with the slices of its matrices that they stand for.
#include "model/shard.h"

#include <ATen/ops/arange.h>
#include <ATen/ops/cat.h>
#include <ATen/ops/equal.h>

#include <string>

#include "check.h"
#include "model/slots.h"
#include "support/thread_team.h"
#include "tiles_testing.h"
#include "tiny_family.h"

namespace dlf {
namespace {

using testing::PackedKind;

// Four heads of 128, 512 inner channels, so that halves hold whole blocks of every kind.
ModelSpec wide_spec() {
  ModelSpec spec = testing::tiny_spec(50, 32, 512, std::vector<float>(64, 0.1F), 1);
  spec.attention.bias = spec.attention.output_bias = spec.feed_forward.bias = spec.head_bias = true;
  spec.learned_positions = 8;
  return spec;
}

// The model with packed linear layers of a kind; of floats without one.
Weights wide_model(const PackedKind* kind) {
  ThreadTeam team(1);
  std::mt19937 generator(3);
  TensorMap tensors;
  for (const TensorSlot& slot : tensor_slots(wide_spec())) {
    const bool linear = slot.shape.size() == 2 && slot.name.starts_with("0.");
    if (kind == nullptr || !linear) {
      tensors[slot.name] = testing::random_tensor(slot.shape, generator);
      continue;
    }
    const ops::Tiles tiles = ops::pack(testing::random_packed(*kind, slot.shape[0], slot.shape[1], 5), team);
    for (const ops::TilePart& part : ops::kTileParts) {
      if ((tiles.*part.tensor).defined()) {
        tensors[slot.name + part.suffix] = tiles.*part.tensor;
      }
    }
  }
  return {wide_spec(), tensors};
}

// The weights of a layer, whose tensors may be views.
at::Tensor values_of(const LinearWeights& linear) {
  if (!ops::is_quantized(linear.matrix.type)) {
    return linear.tensors.data.to(at::kDouble);
  }
  ops::Tiles tiles;
  for (const ops::TilePart& part : ops::kTileParts) {
    const at::Tensor& tensor = linear.tensors.*part.tensor;
    tiles.*part.tensor = tensor.defined() ? tensor.contiguous() : tensor;
  }
  return testing::values_of(ops::matrix_of(tiles, linear.matrix.out, linear.matrix.in, "shard"));
}

void expect_shards_to_be_slices(const PackedKind* kind) {
  const Weights whole = wide_model(kind);
  const Weights parts[] = {shard_of(whole, {0, 2}), shard_of(whole, {1, 2})};
  const LayerWeights& layer = whole.layers[0];
  for (const char* name : {"q", "k", "v", "o", "gate", "up", "down"}) {
    const auto slots = linear_slots(whole.spec(), 0);
    const auto slot = std::ranges::find_if(slots, [&](const LinearSlot& one) { return std::string(name) == one.name; });
    const bool by_inputs = slot->in > slot->out;  // o and down
    const at::Tensor expected = values_of(layer.*slot->weights);
    std::vector<at::Tensor> found;
    for (const Weights& part : parts) {
      found.push_back(values_of(part.layers[0].*slot->weights));
    }
    EXPECT(at::equal(at::cat(found, by_inputs ? 1 : 0), expected));
    const at::Tensor& bias = (layer.*slot->weights).bias;
    const at::Tensor& first = (parts[0].layers[0].*slot->weights).bias;
    const at::Tensor& second = (parts[1].layers[0].*slot->weights).bias;
    EXPECT(by_inputs ? at::equal(first, bias) && !second.defined() : at::equal(at::cat({first, second}), bias));
  }
  EXPECT(
      at::equal(at::cat({values_of(parts[0].embedding), values_of(parts[1].embedding)}), values_of(whole.embedding)));
  EXPECT(at::equal(at::cat({values_of(parts[0].head), values_of(parts[1].head)}), values_of(whole.head)));
  EXPECT(at::equal(at::cat({parts[0].head.bias, parts[1].head.bias}), whole.head.bias));
  EXPECT(parts[0].positions.defined() && !parts[1].positions.defined());
  EXPECT(parts[0].spec().attention.heads == 2 && parts[1].spec().attention.kv_heads == 1);
  const int64_t bytes = parts[0].bytes() + parts[1].bytes();
  EXPECT(bytes >= whole.bytes() && bytes < 1.1 * static_cast<double>(whole.bytes()));
}

void shards_of_floats_are_slices() { expect_shards_to_be_slices(nullptr); }

void shards_of_every_packed_kind_are_slices() {
  for (const PackedKind& kind : testing::kPackedKinds) {
    expect_shards_to_be_slices(&kind);
  }
}

// Every element is on one device; keys and values may be on several.
void ranges_cover_the_model() {
  ModelSpec spec = wide_spec();
  for (const int64_t inner : {512, 11008, 28672, 29568, 100}) {
    spec.feed_forward.size = inner;
    for (int64_t count = 1; count <= 4; ++count) {
      if (spec.attention.heads % count != 0 && spec.attention.kv_heads < count) {
        EXPECT_THROWS(shard_ranges(spec, {0, count}));
        continue;
      }
      int64_t heads = 0;
      int64_t channels = 0;
      int64_t vocab = 0;
      for (int64_t rank = 0; rank < count; ++rank) {
        const ShardRanges ranges = shard_ranges(spec, {rank, count});
        EXPECT(ranges.heads.first == heads && ranges.inner.first == channels && ranges.vocab.first == vocab);
        EXPECT(ranges.heads.count > 0 && ranges.inner.count > 0 && ranges.vocab.count > 0);
        // The keys that the heads read.
        const int64_t group = spec.attention.heads / spec.attention.kv_heads;
        EXPECT(ranges.kv_heads.first == ranges.heads.first / group);
        EXPECT(ranges.kv_heads.first + ranges.kv_heads.count - 1 == (heads + ranges.heads.count - 1) / group);
        heads += ranges.heads.count;
        channels += ranges.inner.count;
        vocab += ranges.vocab.count;
      }
      EXPECT(heads == spec.attention.heads && channels == inner && vocab == spec.vocab_size);
    }
  }
  spec.feed_forward.size = 11008;  // in whole blocks of 256, nearly even
  EXPECT(shard_ranges(spec, {0, 2}).inner.count == 21 * 256);
}

void what_cannot_be_split_is_refused() {
  const auto refused = [](const std::function<void()>& split, const std::string& text) {
    std::string message;
    try {
      split();
    } catch (const std::exception& error) {
      message = error.what();
    }
    EXPECT(message.find(text) != std::string::npos);
  };
  const auto refused_spec = [&](const std::function<void(ModelSpec&)>& change, int64_t count, const char* text) {
    ModelSpec spec = wide_spec();
    change(spec);
    refused([&] { shard_of(spec, {0, count}); }, text);
  };
  refused_spec([](ModelSpec&) {}, 9, "over 1 to 8 devices, not 9");
  refused_spec([](ModelSpec&) {}, 3, "2 heads of keys cannot be split over 3 devices");
  refused_spec([](ModelSpec& spec) { spec.feed_forward.size = 1; }, 2, "1 inner channels cannot be split");
  refused_spec([](ModelSpec& spec) { spec.vocab_size = 16; }, 2, "16 tokens cannot be split");
  refused_spec([](ModelSpec& spec) { spec.experts = {4, 2, 32}; }, 2, "routed experts");
  refused_spec([](ModelSpec& spec) { spec.attention.head_norm = ops::HeadNorm::whole; }, 2, "over all heads");
  // Blocks of 256 inputs, and shards of one head of 128.
  const Weights packed = wide_model(&testing::kPackedKinds[5]);
  refused([&] { shard_of(packed, {1, 4}); }, "input 128 of 0.o");
}

// Updates are cut as their layers are, and rows of their own go where their tokens are.
void adapters_are_cut_like_their_layers() {
  const std::shared_ptr<const Adapter> whole = testing::tiny_adapter(5, 3, true);
  const ModelSpec spec = testing::tiny_model(1)->spec();
  const Adapter parts[] = {shard_of(*whole, spec, {0, 2}), shard_of(*whole, spec, {1, 2})};
  for (size_t layer = 0; layer < 2; ++layer) {
    const LayerAdapter& all = whole->layers[layer];
    const LayerAdapter& first = parts[0].layers[layer];
    const LayerAdapter& second = parts[1].layers[layer];
    for (LowRank LayerAdapter::* update :
         {&LayerAdapter::q, &LayerAdapter::k, &LayerAdapter::v, &LayerAdapter::gate, &LayerAdapter::up}) {
      EXPECT(at::equal(at::cat({(first.*update).b, (second.*update).b}, 1), (all.*update).b));
      EXPECT(at::equal((second.*update).a, (all.*update).a));
    }
    for (LowRank LayerAdapter::* update : {&LayerAdapter::o, &LayerAdapter::down}) {
      EXPECT(at::equal(at::cat({(first.*update).a, (second.*update).a}, 1), (all.*update).a));
      EXPECT(at::equal((second.*update).b, (all.*update).b));
    }
  }
  std::mt19937 generator(1);
  const at::Tensor rows = testing::random_tensor({3, spec.hidden_size}, generator);
  const at::Tensor tokens = at::empty({3}, at::kInt);
  const int32_t ids[] = {40, 2, 33};
  std::copy(std::begin(ids), std::end(ids), tokens.mutable_data_ptr<int32_t>());
  const Adapter own(spec, {{"head.rows", rows}, {"head.tokens", tokens}}, {});
  const OwnRows first = shard_of(own, spec, {0, 2}).head.own;
  const OwnRows second = shard_of(own, spec, {1, 2}).head.own;
  const int64_t begin = shard_ranges(spec, {1, 2}).vocab.first;
  EXPECT(begin == 32 && first.tokens.numel() == 1 && second.tokens.numel() == 2);
  EXPECT(first.tokens.item<int32_t>() == 2 && at::equal(first.rows[0], rows[1]));
  EXPECT(second.tokens[0].item<int32_t>() == 8 && second.tokens[1].item<int32_t>() == 1);
  EXPECT(at::equal(second.rows[0], rows[0]) && at::equal(second.rows[1], rows[2]));
  EXPECT(second.row_of.numel() == spec.vocab_size - begin && second.row_of[8].item<int32_t>() == 0);
  EXPECT(second.row_of[1].item<int32_t>() == 1 && second.row_of[2].item<int32_t>() == -1);
  EXPECT(!shard_of(own, spec, {0, 2}).embedding.own.defined());
}

}  // namespace
}  // namespace dlf

int main() {
  return dlf::testing::run({{"shards of floats are slices", dlf::shards_of_floats_are_slices},
                            {"shards of every packed kind are slices", dlf::shards_of_every_packed_kind_are_slices},
                            {"ranges cover the model", dlf::ranges_cover_the_model},
                            {"what cannot be split is refused", dlf::what_cannot_be_split_is_refused},
                            {"adapters are cut like their layers", dlf::adapters_are_cut_like_their_layers}});
}
