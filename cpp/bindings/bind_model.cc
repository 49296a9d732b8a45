#include <ATen/ops/empty.h>
#include <pybind11/stl.h>

#include "bindings/bindings.h"
#include "bindings/gil.h"
#include "engine/options.h"
#include "model/cpu/decoder.h"
#include "ops/quantize.h"

namespace dlf {
namespace {

namespace py = pybind11;

// A model run by hand: what tests compare with other implementations.
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
      TORCH_CHECK_INDEX(adapter < adapters_, "adapter ", adapter, " of ", adapters_);
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

  int64_t vocab() const { return decoder_.weights().config().vocab_size; }

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

const char* name_of_type(const Weights& weights) {
  switch (weights.type()) {
    case ops::MatrixType::int8:
      return "int8";
    case ops::MatrixType::int4:
      return "int4";
    default:
      return name(weights.dtype());
  }
}

ops::MatrixType quantized_type(int bits) {
  TORCH_CHECK_VALUE(bits == 8 || bits == 4, "bits is ", bits, "; weights can be quantized to 8 or 4");
  return bits == 8 ? ops::MatrixType::int8 : ops::MatrixType::int4;
}

py::tuple quantize(const at::Tensor& weight, int bits, int64_t group, int threads) {
  ops::QuantizedTensor result;
  {
    const GilRelease unlocked;
    ThreadTeam team(threads);
    result = ops::quantize(weight, quantized_type(bits), group, team);
  }
  return py::make_tuple(result.data, result.scale);
}

}  // namespace

void bind_model(py::module_& m) {
  py::class_<ModelConfig>(m, "ModelConfig", "The shape of one decoder-only transformer.")
      .def(py::init<>())
      .def_readwrite("vocab_size", &ModelConfig::vocab_size)
      .def_readwrite("hidden_size", &ModelConfig::hidden_size)
      .def_readwrite("intermediate_size", &ModelConfig::intermediate_size)
      .def_readwrite("num_hidden_layers", &ModelConfig::num_hidden_layers)
      .def_readwrite("num_attention_heads", &ModelConfig::num_attention_heads)
      .def_readwrite("num_key_value_heads", &ModelConfig::num_key_value_heads)
      .def_readwrite("head_dim", &ModelConfig::head_dim)
      .def_readwrite("rms_norm_eps", &ModelConfig::rms_norm_eps)
      .def_readwrite("sliding_windows", &ModelConfig::sliding_windows)
      .def_readwrite("inv_freq", &ModelConfig::inv_freq)
      .def_readwrite("rope_scaling_factor", &ModelConfig::rope_scaling_factor);

  py::class_<Weights, std::shared_ptr<Weights>>(m, "Weights", "The tensors and config of one checkpoint, immutable.")
      .def(py::init<ModelConfig, const TensorMap&>(), py::arg("config"), py::arg("tensors"))
      .def_property_readonly("nbytes", &Weights::bytes)
      .def_property_readonly("dtype", [](const Weights& w) { return name(w.dtype()); })
      .def_property_readonly("type", &name_of_type);

  py::class_<Adapter, std::shared_ptr<Adapter>>(m, "Adapter", "What LoRA adds to a checkpoint, immutable.")
      .def(py::init<const ModelConfig&, const TensorMap&, const std::unordered_map<std::string, double>&>(),
           py::arg("config"), py::arg("tensors"), py::arg("scales"))
      .def_property_readonly("nbytes", &Adapter::bytes)
      .def_property_readonly("dtype", [](const Adapter& adapter) { return name(adapter.dtype()); });

  m.def("quantize", &quantize, py::arg("weight"), py::arg("bits"), py::arg("group"), py::arg("threads"),
        "Tiles and scales of a matrix [out, in] rounded to 8 bits (group 0) or 4 (group 32 or 64).");

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
