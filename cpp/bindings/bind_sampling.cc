#include <pybind11/numpy.h>
#include <pybind11/stl.h>

#include "bindings/bindings.h"
#include "bindings/gil.h"
#include "sampling/cpu/sampler.h"
#include "sampling/random.h"

namespace py = pybind11;

namespace dlf {
namespace {

using Floats = py::array_t<float, py::array::c_style | py::array::forcecast>;
using Tokens = std::vector<int64_t>;

template <typename T>
py::array_t<T> copy(const T* data, int64_t count) {
  return py::array_t<T>(static_cast<py::ssize_t>(count), data);
}

// A Sampler and the size of the logits that it reads.
struct BoundSampler {
  BoundSampler(const SamplingOptions& options, int64_t vocab, const Tokens& prompt, int64_t max_new_tokens)
      : sampler(options, vocab, prompt, max_new_tokens), vocab(vocab) {}

  py::tuple sample(const Floats& logits, int64_t step) {
    TORCH_CHECK_VALUE(logits.ndim() == 1 && logits.shape(0) == vocab, "logits must have the shape [", vocab, "]");
    const Sample sample = sampler.sample(logits.data(), step);
    return py::make_tuple(sample.token, sample.logprob, copy(sample.top_tokens, sample.top_count),
                          copy(sample.top_logprobs, sample.top_count));
  }

  Sampler sampler;
  int64_t vocab;
};

py::array_t<int64_t> sample_many(const Floats& logits, const SamplingOptions& options, int64_t draws,
                                 const Tokens& prompt) {
  TORCH_CHECK_VALUE(logits.ndim() == 1, "logits must have one dimension");
  constexpr int64_t kMostDraws = 1 << 26;
  TORCH_CHECK_VALUE(draws >= 0 && draws <= kMostDraws, "draws is ", draws, ": give a count from 0 to ", kMostDraws);
  Sampler sampler(options, logits.shape(0), prompt, 0);
  py::array_t<int64_t> tokens(draws);
  int64_t* out = tokens.mutable_data();
  const std::vector<float> values(logits.data(), logits.data() + logits.size());  // others may write to the array
  const GilRelease unlocked;
  for (int64_t step = 0; step < draws; ++step) {
    out[step] = sampler.sample(values.data(), step).token;
  }
  return tokens;
}

SamplingOptions make_options(const py::kwargs& values) {
  const py::object options = py::cast(SamplingOptions());
  for (const auto& [name, value] : values) {
    py::setattr(options, name, value);
  }
  return options.cast<SamplingOptions>();
}

void bind_options(py::module_& m) {
  py::class_<SamplingOptions>(m, "SamplingOptions", "How the next token is chosen.")
      .def(py::init(&make_options))
      .def_readwrite("masked", &SamplingOptions::masked)
      .def_readwrite("repetition_penalty", &SamplingOptions::repetition_penalty)
      .def_readwrite("presence_penalty", &SamplingOptions::presence_penalty)
      .def_readwrite("frequency_penalty", &SamplingOptions::frequency_penalty)
      .def_readwrite("logit_bias", &SamplingOptions::logit_bias)
      .def_readwrite("bad_words", &SamplingOptions::bad_words)
      .def_readwrite("stop_token_ids", &SamplingOptions::stop_token_ids)
      .def_readwrite("min_new_tokens", &SamplingOptions::min_new_tokens)
      .def_readwrite("temperature", &SamplingOptions::temperature)
      .def_readwrite("top_k", &SamplingOptions::top_k)
      .def_readwrite("top_p", &SamplingOptions::top_p)
      .def_readwrite("min_p", &SamplingOptions::min_p)
      .def_readwrite("seed", &SamplingOptions::seed)
      .def_readwrite("stream", &SamplingOptions::stream)
      .def_readwrite("logprobs", &SamplingOptions::logprobs);
}

}  // namespace

void bind_sampling(py::module_& m) {
  bind_options(m);
  m.attr("MAX_PENALTY") = kMostPenalty;
  m.attr("MAX_BIAS") = kMostBias;
  py::class_<BoundSampler>(m, "Sampler", "Chooses the tokens of one sequence.")
      .def(py::init<const SamplingOptions&, int64_t, const Tokens&, int64_t>(), py::arg("options"), py::arg("vocab"),
           py::arg("prompt") = Tokens{}, py::arg("max_new_tokens") = 0)
      .def("sample", &BoundSampler::sample, py::arg("logits"), py::arg("step"),
           "Token chosen from logits[vocab], its log-probability, and the most probable tokens with theirs.")
      .def(
          "append", [](BoundSampler& self, int64_t token) { self.sampler.append(token); }, py::arg("token"),
          "Records a token that was chosen.");
  m.def("sample_many", &sample_many, py::arg("logits"), py::arg("options"), py::arg("draws"),
        py::arg("prompt") = Tokens{}, "Tokens drawn from the same logits at the steps 0 to draws - 1.");
  m.def("philox_uniform", &philox_uniform, py::arg("seed"), py::arg("step"), py::arg("stream") = uint64_t{0},
        "Uniform random number in [0, 1), a function of its arguments alone.");
}

}  // namespace dlf
