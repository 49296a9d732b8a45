#include <ATen/ops/empty.h>
#include <pybind11/stl.h>
#include <pybind11/typing.h>

#include <algorithm>
#include <array>
#include <optional>
#include <utility>

#include "bindings/bindings.h"
#include "bindings/gil.h"
#include "engine/options.h"
#include "model/cpu/decoder.h"
#include "model/slots.h"
#include "model/spec.h"
#include "ops/cpu/pack.h"
#include "ops/cpu/quantize.h"

namespace dlf {
namespace {

namespace py = pybind11;

// A model run by hand, for tests that compare it with other implementations.
class StandaloneDecoder {
 public:
  StandaloneDecoder(std::shared_ptr<Weights> weights, int64_t slots, int64_t max_context, int threads,
                    const std::vector<std::shared_ptr<Adapter>>& adapters)
      : team_(threads),
        adapters_(static_cast<int64_t>(adapters.size())),
        decoder_(std::move(weights), checked("slots", slots, kMostSlots),
                 checked("max_context", max_context, kMostContext), team_, {adapters.begin(), adapters.end()}) {}

  at::Tensor prefill(const std::vector<int64_t>& tokens, int64_t slot, int64_t position, int64_t adapter) {
    const auto count = static_cast<int64_t>(tokens.size());
    TORCH_CHECK_VALUE(count <= decoder_.cache().max_context(), count, " tokens do not fit the context of ",
                      decoder_.cache().max_context());
    at::Tensor logits = at::empty({count, vocab()}, at::kFloat);
    decoder_.prefill(tokens, slot, position, logits.mutable_data_ptr<float>(), /*all_logits=*/true, adapter);
    return logits;
  }

  at::Tensor decode(const std::vector<int64_t>& tokens, const std::vector<int64_t>& slots,
                    const std::vector<int64_t>& positions, const std::vector<int64_t>& adapters) {
    TORCH_CHECK_VALUE(tokens.size() == slots.size() && tokens.size() == positions.size() &&
                          (adapters.empty() || adapters.size() == tokens.size()) &&
                          static_cast<int64_t>(tokens.size()) <= decoder_.cache().slots(),
                      "tokens, slots, positions and adapters must have one length, at most the number of slots");
    std::vector<Row> rows;
    for (size_t i = 0; i < tokens.size(); ++i) {
      TORCH_CHECK_INDEX(tokens[i] >= 0 && tokens[i] < vocab(), "token id ", tokens[i], " is outside the vocabulary");
      TORCH_CHECK_INDEX(slots[i] >= 0 && slots[i] < decoder_.cache().slots(), "slot ", slots[i], " does not exist");
      TORCH_CHECK_INDEX(positions[i] >= 0 && positions[i] < decoder_.cache().max_context(), "position ", positions[i],
                        " is outside the context");
      const int64_t adapter = adapters.empty() ? -1 : adapters[i];
      TORCH_CHECK_INDEX(adapter < adapters_, "adapter ", adapter, " does not exist; number of adapters: ", adapters_);
      rows.push_back({tokens[i], slots[i], positions[i], adapter});
    }
    at::Tensor logits = at::empty({static_cast<int64_t>(tokens.size()), vocab()}, at::kFloat);
    decoder_.decode(rows, logits.mutable_data_ptr<float>());
    return logits;
  }

 private:
  static constexpr int64_t kMostSlots = 1 << 16;

  static int64_t checked(const char* name, int64_t value, int64_t most) {
    TORCH_CHECK_VALUE(value >= 1 && value <= most, name, " is ", value, "; it must be from 1 to ", most);
    return value;
  }

  int64_t vocab() const { return decoder_.weights().spec().vocab_size; }

  ThreadTeam team_;
  int64_t adapters_;
  Decoder decoder_;
};

const char* name(DType dtype) {
  switch (dtype) {
    case DType::float32:
      return "float32";
    case DType::bfloat16:
      return "bfloat16";
    default:
      return "float16";
  }
}

const char* name_of_type(ops::MatrixType type) {
  switch (type) {
    case ops::MatrixType::float32:
      return "float32";
    case ops::MatrixType::bfloat16:
      return "bfloat16";
    case ops::MatrixType::float16:
      return "float16";
    case ops::MatrixType::int8:
      return "int8";
    case ops::MatrixType::int6:
      return "int6";
    default:
      return "int4";
  }
}

std::string names_of_types(const Weights& weights) {
  std::string names;
  for (const ops::MatrixType type : weights.types()) {
    names += (names.empty() ? "" : ", ") + std::string(name_of_type(type));
  }
  return names;
}

ops::MatrixType quantized_type(int bits) {
  TORCH_CHECK_VALUE(bits == 8 || bits == 4, "bits is ", bits, "; weights can be quantized to 8 or 4");
  return bits == 8 ? ops::MatrixType::int8 : ops::MatrixType::int4;
}

py::tuple quantize(const at::Tensor& weight, int bits, int64_t group, int threads) {
  ops::Tiles result;
  {
    const GilRelease unlocked;
    ThreadTeam team(threads);
    result = ops::quantize(weight, quantized_type(bits), group, team);
  }
  return py::make_tuple(result.data, result.scale);
}

// Names that a field's values have in Python.
template <typename T, size_t N>
struct Names {
  const char* field;
  std::array<std::pair<const char*, T>, N> values;

  T of(const std::string& name) const {
    std::string all;
    for (const auto& [known, value] : values) {
      if (name == known) {
        return value;
      }
      all += (all.empty() ? "" : ", ") + std::string(known);
    }
    TORCH_CHECK_VALUE(false, field, " is '", name, "'; it takes ", all);
  }
  const char* of(T value) const {
    return std::find_if(values.begin(), values.end(), [&](const auto& one) { return one.second == value; })->first;
  }
};

constexpr Names<ops::NormKind, 2> kNormKinds = {"kind",
                                                {{{"rms", ops::NormKind::rms}, {"layer", ops::NormKind::layer}}}};
constexpr Names<ops::HeadNorm, 4> kHeadNorms = {"head_norm",
                                                {{{"none", ops::HeadNorm::none},
                                                  {"shared", ops::HeadNorm::shared},
                                                  {"own", ops::HeadNorm::own},
                                                  {"whole", ops::HeadNorm::whole}}}};
constexpr Names<ops::Activation, 3> kActivations = {
    "activation",
    {{{"silu", ops::Activation::silu}, {"gelu", ops::Activation::gelu}, {"gelu_tanh", ops::Activation::gelu_tanh}}}};

using OptionalTensor = std::optional<at::Tensor>;

std::unordered_map<std::string, at::Tensor> pack(const at::Tensor& values, const at::Tensor& scale,
                                                 const OptionalTensor& minimum, int bits, int64_t group,
                                                 const OptionalTensor& zero, int64_t block,
                                                 const OptionalTensor& block_scale, const OptionalTensor& block_minimum,
                                                 int threads) {
  const auto of = [](const OptionalTensor& tensor) { return tensor.value_or(at::Tensor()); };
  const GilRelease unlocked;
  ThreadTeam team(threads);
  const ops::Tiles tiles =
      ops::pack({values, scale, of(minimum), bits, group, of(zero), block, of(block_scale), of(block_minimum)}, team);
  std::unordered_map<std::string, at::Tensor> parts;
  for (const ops::TilePart& part : ops::kTileParts) {
    if ((tiles.*part.tensor).defined()) {
      parts.emplace(part.suffix, tiles.*part.tensor);
    }
  }
  return parts;
}

// Binds what a family's file says of a model, immutable; model/spec.h has the meaning of each field.
void bind_spec(py::module_& m) {
  py::class_<NormSpec>(m, "NormSpec", "The norms of the residual stream.")
      .def(py::init(
               [](const std::string& kind, double epsilon, bool offset, bool bias, bool before, bool after,
                  bool shared) { return NormSpec{kNormKinds.of(kind), epsilon, offset, bias, before, after, shared}; }),
           py::kw_only(), py::arg("kind") = "rms", py::arg("epsilon") = 1e-6, py::arg("offset") = false,
           py::arg("bias") = false, py::arg("before") = true, py::arg("after") = false, py::arg("shared") = false)
      .def_property_readonly("kind", [](const NormSpec& spec) { return kNormKinds.of(spec.kind); })
      .def_readonly("epsilon", &NormSpec::epsilon)
      .def_readonly("offset", &NormSpec::offset)
      .def_readonly("bias", &NormSpec::bias)
      .def_readonly("before", &NormSpec::before)
      .def_readonly("after", &NormSpec::after)
      .def_readonly("shared", &NormSpec::shared);

  py::class_<AttentionSpec>(m, "AttentionSpec", "Attention; the same in all layers.")
      .def(py::init([](int64_t heads, int64_t kv_heads, int64_t head_dim, std::optional<double> query_scalar,
                       double softcap, const std::string& head_norm, bool head_norm_bias, double clip, bool bias,
                       bool output_bias) {
             return AttentionSpec{heads,          kv_heads,
                                  head_dim,       query_scalar.value_or(static_cast<double>(head_dim)),
                                  softcap,        kHeadNorms.of(head_norm),
                                  head_norm_bias, clip,
                                  bias,           output_bias};
           }),
           py::kw_only(), py::arg("heads"), py::arg("kv_heads"), py::arg("head_dim"),
           py::arg("query_scalar") = py::none(), py::arg("softcap") = 0.0, py::arg("head_norm") = "none",
           py::arg("head_norm_bias") = false, py::arg("clip") = 0.0, py::arg("bias") = false,
           py::arg("output_bias") = false)
      .def_readonly("heads", &AttentionSpec::heads)
      .def_readonly("kv_heads", &AttentionSpec::kv_heads)
      .def_readonly("head_dim", &AttentionSpec::head_dim)
      .def_readonly("query_scalar", &AttentionSpec::query_scalar)
      .def_readonly("softcap", &AttentionSpec::softcap)
      .def_property_readonly("head_norm", [](const AttentionSpec& spec) { return kHeadNorms.of(spec.head_norm); })
      .def_readonly("head_norm_bias", &AttentionSpec::head_norm_bias)
      .def_readonly("clip", &AttentionSpec::clip)
      .def_readonly("bias", &AttentionSpec::bias)
      .def_readonly("output_bias", &AttentionSpec::output_bias);

  py::class_<FeedForwardSpec>(m, "FeedForwardSpec", "The feed-forward; the same in all layers.")
      .def(py::init([](int64_t size, const std::string& activation, bool gated, bool bias) {
             return FeedForwardSpec{size, kActivations.of(activation), gated, bias};
           }),
           py::kw_only(), py::arg("size"), py::arg("activation") = "silu", py::arg("gated") = true,
           py::arg("bias") = false)
      .def_readonly("size", &FeedForwardSpec::size)
      .def_property_readonly("activation", [](const FeedForwardSpec& spec) { return kActivations.of(spec.activation); })
      .def_readonly("gated", &FeedForwardSpec::gated)
      .def_readonly("bias", &FeedForwardSpec::bias);

  py::class_<ExpertsSpec>(m, "ExpertsSpec", "The experts of the layers that have some.")
      .def(py::init([](int64_t count, int64_t chosen, int64_t size, bool normalise, int64_t shared_size,
                       bool shared_router) {
             return ExpertsSpec{count, chosen, size, normalise, shared_size, shared_router};
           }),
           py::kw_only(), py::arg("count"), py::arg("chosen"), py::arg("size"), py::arg("normalise") = false,
           py::arg("shared_size") = 0, py::arg("shared_router") = false)
      .def_readonly("count", &ExpertsSpec::count)
      .def_readonly("chosen", &ExpertsSpec::chosen)
      .def_readonly("size", &ExpertsSpec::size)
      .def_readonly("normalise", &ExpertsSpec::normalise)
      .def_readonly("shared_size", &ExpertsSpec::shared_size)
      .def_readonly("shared_router", &ExpertsSpec::shared_router);

  py::class_<RopeSpec>(m, "RopeSpec", "How positions change queries and keys.")
      .def(py::init([](std::vector<float> inv_freq, double scaling, std::vector<float> long_inv_freq,
                       int64_t short_context, double query_beta, int64_t query_positions) {
             return RopeSpec{std::move(inv_freq), scaling,    std::move(long_inv_freq),
                             short_context,       query_beta, query_positions};
           }),
           py::kw_only(), py::arg("inv_freq"), py::arg("scaling") = 1.0,
           py::arg("long_inv_freq") = std::vector<float>(), py::arg("short_context") = 0, py::arg("query_beta") = 0.0,
           py::arg("query_positions") = 0)
      .def_readonly("inv_freq", &RopeSpec::inv_freq)
      .def_readonly("scaling", &RopeSpec::scaling)
      .def_readonly("long_inv_freq", &RopeSpec::long_inv_freq)
      .def_readonly("short_context", &RopeSpec::short_context)
      .def_readonly("query_beta", &RopeSpec::query_beta)
      .def_readonly("query_positions", &RopeSpec::query_positions)
      .def("frequencies", &RopeSpec::frequencies, py::arg("context"), "Frequencies for a context of this length.");

  py::class_<LayerSpec>(m, "LayerSpec", "What may differ from layer to layer.")
      .def(py::init([](int64_t window, int64_t rope, bool experts) { return LayerSpec{window, rope, experts}; }),
           py::kw_only(), py::arg("window") = 0, py::arg("rope") = 0, py::arg("experts") = false)
      .def_readonly("window", &LayerSpec::window)
      .def_readonly("rope", &LayerSpec::rope)
      .def_readonly("experts", &LayerSpec::experts);

  py::class_<ModelSpec>(m, "ModelSpec", "What one decoder-only transformer computes.")
      .def(py::init([](int64_t vocab_size, int64_t hidden_size, const NormSpec& norm, const AttentionSpec& attention,
                       const FeedForwardSpec& feed_forward, std::vector<RopeSpec> ropes, std::vector<LayerSpec> layers,
                       const std::optional<ExpertsSpec>& experts, int64_t learned_positions,
                       double embedding_multiplier, bool parallel, bool head_bias, double residual_multiplier,
                       double logit_multiplier, double logit_softcap) {
             ModelSpec spec = {vocab_size,    hidden_size,      learned_positions,   embedding_multiplier,
                               norm,          attention,        feed_forward,        experts.value_or(ExpertsSpec{}),
                               parallel,      head_bias,        residual_multiplier, logit_multiplier,
                               logit_softcap, std::move(ropes), std::move(layers)};
             check(spec);
             return spec;
           }),
           py::kw_only(), py::arg("vocab_size"), py::arg("hidden_size"), py::arg("norm"), py::arg("attention"),
           py::arg("feed_forward"), py::arg("ropes"), py::arg("layers"), py::arg("experts") = py::none(),
           py::arg("learned_positions") = 0, py::arg("embedding_multiplier") = 1.0, py::arg("parallel") = false,
           py::arg("head_bias") = false, py::arg("residual_multiplier") = 1.0, py::arg("logit_multiplier") = 1.0,
           py::arg("logit_softcap") = 0.0)
      .def_readonly("vocab_size", &ModelSpec::vocab_size)
      .def_readonly("hidden_size", &ModelSpec::hidden_size)
      .def_readonly("learned_positions", &ModelSpec::learned_positions)
      .def_readonly("embedding_multiplier", &ModelSpec::embedding_multiplier)
      .def_readonly("norm", &ModelSpec::norm)
      .def_readonly("attention", &ModelSpec::attention)
      .def_readonly("feed_forward", &ModelSpec::feed_forward)
      .def_readonly("experts", &ModelSpec::experts)
      .def_readonly("parallel", &ModelSpec::parallel)
      .def_readonly("head_bias", &ModelSpec::head_bias)
      .def_readonly("residual_multiplier", &ModelSpec::residual_multiplier)
      .def_readonly("logit_multiplier", &ModelSpec::logit_multiplier)
      .def_readonly("logit_softcap", &ModelSpec::logit_softcap)
      .def_readonly("ropes", &ModelSpec::ropes)
      .def_readonly("layers", &ModelSpec::layers);

  m.def(
      "tensor_shapes",
      [](const ModelSpec& spec) {
        py::typing::Dict<py::str, py::typing::Tuple<py::int_, py::ellipsis>> shapes;
        for (const TensorSlot& slot : tensor_slots(spec)) {
          shapes[py::str(slot.name)] = py::tuple(py::cast(slot.shape));
        }
        return shapes;
      },
      py::arg("spec"), "Slot and shape of every tensor of a model, in the order of a pass.");
}

}  // namespace

void bind_model(py::module_& m) {
  bind_spec(m);

  py::class_<Weights, std::shared_ptr<Weights>>(m, "Weights", "The tensors and spec of one checkpoint, immutable.")
      .def(py::init<ModelSpec, const TensorMap&>(), py::arg("spec"), py::arg("tensors"))
      .def_property_readonly("nbytes", &Weights::bytes)
      .def_property_readonly("dtype", [](const Weights& w) { return name(w.dtype()); })
      .def_property_readonly("type", &names_of_types,
                             "Types of the linear layers' weights, the one with most bytes first.");

  py::class_<Adapter, std::shared_ptr<Adapter>>(m, "Adapter", "What LoRA adds to a checkpoint, immutable.")
      .def(py::init<const ModelSpec&, const TensorMap&, const std::unordered_map<std::string, double>&>(),
           py::arg("spec"), py::arg("tensors"), py::arg("scales"))
      .def_property_readonly("nbytes", &Adapter::bytes)
      .def_property_readonly("dtype", [](const Adapter& adapter) { return name(adapter.dtype()); });

  m.def("quantize", &quantize, py::arg("weight"), py::arg("bits"), py::arg("group"), py::arg("threads"),
        "Returns tiles and scales of a matrix [out, in] rounded to 8 bits (group 0) or 4 (group 32 or 64).");

  m.def(
      "tile_bits",
      [](int bits, int64_t group, bool is_signed, bool has_minimum) {
        const ops::MatrixType type = ops::tile_type(bits, group, is_signed, has_minimum);
        return ops::is_quantized(type) ? ops::bits(type) : 0;
      },
      py::arg("bits"), py::arg("group"), py::arg("signed"), py::arg("minimum"),
      "Bits of the tiles that keep integers of so many bits; 0 if none do.");
  m.def("pack", &pack, py::arg("values"), py::arg("scale"), py::arg("minimum"), py::arg("bits"), py::arg("group"),
        py::kw_only(), py::arg("zero") = py::none(), py::arg("block") = 0, py::arg("block_scale") = py::none(),
        py::arg("block_minimum") = py::none(), py::arg("threads"),
        "Lays out the integers and scales of a PackedMatrix in tiles; returns its parts by suffix: '', '.scale', ...");

  py::class_<StandaloneDecoder>(m, "Decoder", "One model run by hand, without the step loop.")
      .def(py::init<std::shared_ptr<Weights>, int64_t, int64_t, int, const std::vector<std::shared_ptr<Adapter>>&>(),
           py::arg("weights").none(false), py::arg("slots"), py::arg("max_context"), py::arg("threads"),
           py::arg("adapters") = std::vector<std::shared_ptr<Adapter>>())
      .def("prefill", &StandaloneDecoder::prefill, py::arg("tokens"), py::arg("slot"), py::arg("position"),
           py::arg("adapter") = -1, py::call_guard<GilRelease>(),
           "Logits [tokens, vocab] of consecutive tokens of one slot.")
      .def("decode", &StandaloneDecoder::decode, py::arg("tokens"), py::arg("slots"), py::arg("positions"),
           py::arg("adapters") = std::vector<int64_t>(), py::call_guard<GilRelease>(),
           "Logits [rows, vocab] of one token in each of several slots.");
}

}  // namespace dlf
