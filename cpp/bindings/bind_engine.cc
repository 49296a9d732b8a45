#include <pybind11/stl.h>
#include <pybind11/typing.h>

#include <optional>
#include <vector>

#include "bindings/bindings.h"
#include "bindings/gil.h"
#include "engine/cache_size.h"
#include "engine/cpu/step_loop.h"
#include "engine/cuda/step_loop.h"
#include "engine/hook.h"
#include "engine/mask.h"

namespace dlf {

namespace py = pybind11;

namespace {

// Checks that no pointer is null, which Python's None becomes.
template <typename Shared, typename Given>
std::vector<std::shared_ptr<Shared>> present(const std::vector<std::shared_ptr<Given>>& given) {
  for (const std::shared_ptr<Given>& one : given) {
    TORCH_CHECK_TYPE(one != nullptr, "a model or an adapter is None");
  }
  return {given.begin(), given.end()};
}

using PythonHook = py::typing::Callable<bool(HookRows)>;
using PythonMasks = py::typing::Callable<void(std::vector<MaskRows>)>;

// A hook that calls Python; both arguments must outlive it.
CallHook as_hook(const std::optional<PythonHook>& hook, GilRelease& unlocked) {
  if (!hook) {
    return {};
  }
  return [&](const HookRows& rows) { return unlocked.call(*hook, [&] { return py::cast(rows); }); };
}

// Likewise for masks.
CallMasks as_masks(const std::optional<PythonMasks>& masks, GilRelease& unlocked) {
  if (!masks) {
    return {};
  }
  return [&](std::span<const MaskRows> rows) {
    unlocked.call(*masks, [&] { return py::cast(std::vector(rows.begin(), rows.end())); });
  };
}

// The outputs of a step, copied while they hold.
std::vector<StepOutput> step(StepLoop& loop, const std::optional<PythonHook>& hook,
                             const std::optional<PythonMasks>& masks) {
  GilRelease unlocked;
  std::vector<StepOutput> outputs;
  for (const StepOutput* output : loop.step({as_hook(hook, unlocked), as_masks(masks, unlocked)})) {
    outputs.push_back(*output);
  }
  return outputs;
}

// A tensor, or None if it is undefined.
std::optional<at::Tensor> defined(const at::Tensor& tensor) {
  return tensor.defined() ? std::optional(tensor) : std::nullopt;
}

std::vector<std::optional<at::Tensor>> defined(const std::vector<at::Tensor>& tensors) {
  std::vector<std::optional<at::Tensor>> found;
  found.reserve(tensors.size());
  for (const at::Tensor& tensor : tensors) {
    found.push_back(defined(tensor));
  }
  return found;
}

void bind_hooks(py::module_& m) {
  py::class_<HookRows>(m, "HookRows", "Logits of a request's positions in a step, valid while the hook runs.")
      .def_readonly("request", &HookRows::request)
      .def_readonly("step", &HookRows::step)
      .def_readonly("tokens", &HookRows::tokens)
      .def_property_readonly("large", [](const HookRows& rows) { return rows.large; })
      .def_property_readonly("experts", [](const HookRows& rows) { return defined(rows.experts); })
      .def_property_readonly("bases", [](const HookRows& rows) { return defined(rows.bases); })
      .def_property_readonly("fused", [](const HookRows& rows) { return rows.fused; })
      .def_property_readonly("alpha", [](const HookRows& rows) { return defined(rows.alpha); })
      .def_property_readonly("f", [](const HookRows& rows) { return defined(rows.f); })
      .def_property_readonly("g", [](const HookRows& rows) { return defined(rows.g); });

  py::class_<MaskRows>(
      m, "MaskRows",
      "Masks that a request wants: of the tokens that may follow its last tokens, decoded and then drafted "
      "behind them. The words are valid while the call runs.")
      .def_readonly("request", &MaskRows::request)
      .def_readonly("decoded", &MaskRows::decoded)
      .def_readonly("drafted", &MaskRows::drafted)
      .def_property_readonly("words", [](const MaskRows& rows) { return rows.words; });
}

// Results of steps and scores.
void bind_results(py::module_& m) {
  py::enum_<FinishReason>(m, "FinishReason", "Why a sequence ended.")
      .value("none", FinishReason::none)
      .value("stop", FinishReason::stop)
      .value("length", FinishReason::length)
      .value("error", FinishReason::error);

  py::enum_<FailureKind>(m, "FailureKind", "Why a sequence or a score ended early.")
      .value("none", FailureKind::none)
      .value("bad_logits", FailureKind::bad_logits)
      .value("no_token", FailureKind::no_token)
      .value("hook", FailureKind::hook);

  py::class_<Failure>(m, "Failure", "Why a sequence or a score ended early, with a message.")
      .def_readonly("kind", &Failure::kind)
      .def_readonly("message", &Failure::message)
      .def("__bool__", [](const Failure& failure) { return static_cast<bool>(failure); });

  py::class_<StepOutput>(m, "StepOutput", "A token that a step gave a sequence.")
      .def_readonly("request", &StepOutput::request)
      .def_readonly("token", &StepOutput::token)
      .def_readonly("logprob", &StepOutput::logprob)
      .def_readonly("top_tokens", &StepOutput::top_tokens)
      .def_readonly("top_logprobs", &StepOutput::top_logprobs)
      .def_readonly("alpha", &StepOutput::alpha)
      .def_readonly("f", &StepOutput::f)
      .def_readonly("g", &StepOutput::g)
      .def_readonly("own_token", &StepOutput::own_token)
      .def_readonly("drafted", &StepOutput::drafted)
      .def_readonly("cached_tokens", &StepOutput::cached_tokens)
      .def_readonly("finish", &StepOutput::finish)
      .def_readonly("failure", &StepOutput::failure);

  py::class_<Prompt>(m, "Prompt",
                     "Token ids that a lane reads, and the positions after which other prompts may differ.")
      .def(py::init<std::vector<int64_t>, std::vector<int64_t>>(), py::arg("tokens") = std::vector<int64_t>(),
           py::arg("breaks") = std::vector<int64_t>())
      .def_readonly("tokens", &Prompt::tokens)
      .def_readonly("breaks", &Prompt::breaks);

  py::class_<Score>(m, "Score", "Score of one continuation under the fused distributions.")
      .def_readonly("logprobs", &Score::logprobs)
      .def_readonly("greedy", &Score::greedy)
      .def_readonly("alpha", &Score::alpha)
      .def_readonly("f", &Score::f)
      .def_readonly("g", &Score::g)
      .def_readonly("failure", &Score::failure);

  py::class_<StepTimings>(m, "StepTimings",
                          "Seconds that a step spent in each of its parts, and what kind of step it was.")
      .def_readonly("large", &StepTimings::large)
      .def_readonly("small", &StepTimings::small)
      .def_readonly("solve", &StepTimings::solve)
      .def_readonly("sample", &StepTimings::sample)
      .def_readonly("small_passes", &StepTimings::small_passes)
      .def_readonly("drafted", &StepTimings::drafted)
      .def_readonly("drafter", &StepTimings::drafter)
      .def_readonly("graph", &StepTimings::graph);

  py::class_<Speculation>(m, "Speculation",
                          "Speculative decoding of a sequence: how many tokens are drafted, and by what.")
      .def(py::init([](int64_t max_draft, int64_t drafter, bool adaptive) {
             return Speculation{max_draft, drafter, adaptive};
           }),
           py::arg("max_draft"), py::arg("drafter") = kAutoDrafter, py::arg("adaptive") = true)
      .def_readonly("max_draft", &Speculation::max_draft)
      .def_readonly("drafter", &Speculation::drafter)
      .def_readonly("adaptive", &Speculation::adaptive);
  m.attr("AUTO_DRAFTER") = kAutoDrafter;
  m.attr("PROMPT_LOOKUP") = kPromptLookup;
  m.attr("MAX_DRAFT") = kMaxDraft;
}

// Arguments of a loop, and its requests.
void bind_requests(py::module_& m) {
  py::class_<TokenMap>(m, "TokenMap", "Ids of a model whose tokenizer has other ids than the large model's.")
      .def(py::init<>(), "The large model's ids.")
      .def(py::init([](std::vector<int32_t> feed, std::vector<int32_t> read) {
             return TokenMap{std::move(feed), std::move(read)};
           }),
           py::arg("feed"), py::arg("read"));

  py::class_<FusionPlan>(m, "FusionPlan", "Lanes of each sequence, and which of them are experts and bases.")
      .def(py::init([](std::vector<int64_t> lane_model, const std::vector<std::pair<int64_t, int64_t>>& experts,
                       int64_t vocab, std::vector<int64_t> lane_adapter, int64_t drafter,
                       std::vector<TokenMap> token_maps) {
             FusionPlan plan{std::move(lane_model), std::move(lane_adapter), {}, vocab, drafter, std::move(token_maps)};
             for (const auto& [expert, base] : experts) {
               plan.experts.push_back({expert, base});
             }
             return plan;
           }),
           py::arg("lane_model"), py::arg("experts"), py::arg("vocab"),
           py::arg("lane_adapter") = std::vector<int64_t>(), py::arg("drafter") = -1,
           py::arg("token_maps") = std::vector<TokenMap>());

  py::class_<EngineOptions>(m, "EngineOptions", "Sizes and devices of a step loop.")
      .def(py::init([](int64_t max_batch, int64_t max_context, int threads, int64_t prefix_cache_bytes,
                       int64_t kv_cache_bytes, int64_t prompt_budget, std::vector<int> devices, bool cuda_graph,
                       std::vector<int> split) {
             return EngineOptions{max_batch,          max_context, threads,        prefix_cache_bytes, prompt_budget,
                                  std::move(devices), cuda_graph,  kv_cache_bytes, std::move(split)};
           }),
           py::arg("max_batch"), py::arg("max_context"), py::arg("threads") = 1, py::arg("prefix_cache_bytes") = 0,
           py::arg("kv_cache_bytes") = 0, py::arg("prompt_budget") = 0, py::arg("devices") = std::vector<int>(),
           py::arg("cuda_graph") = true, py::arg("split") = std::vector<int>());

  py::class_<CacheSize>(m, "CacheSize", "Blocks of one model's KV cache.")
      .def_readonly("for_requests", &CacheSize::for_requests)
      .def_readonly("for_prefixes", &CacheSize::for_prefixes);
  m.def(
      "cache_sizes",
      [](const FusionPlan& plan, const std::vector<int64_t>& block_bytes, const EngineOptions& options) {
        return cache_sizes(plan, block_bytes, options);
      },
      py::arg("plan"), py::arg("block_bytes"), py::arg("options"),
      "Sizes of the KV caches of all models, whose blocks have these bytes.");
  m.attr("CACHE_BLOCK") = ops::kCacheBlock;

  py::class_<Request>(m, "Request", "A prompt for each lane, empty if no chosen expert needs it, and how to decode.")
      .def(py::init([](int64_t id, std::vector<Prompt> prompts, std::vector<int> experts, SamplingOptions sampling,
                       int64_t max_new_tokens, const Speculation& speculation, Rule rule, bool hook, bool trace,
                       int64_t priority) {
             return Request{id,
                            std::move(prompts),
                            std::move(experts),
                            std::move(rule),
                            std::move(sampling),
                            max_new_tokens,
                            speculation,
                            hook,
                            trace,
                            priority};
           }),
           py::arg("id"), py::arg("prompts"), py::arg("experts"), py::arg("sampling"), py::arg("max_new_tokens"),
           py::arg_v("speculation", Speculation(), "Speculation(0)"), py::arg_v("rule", Rule(), "Rule()"),
           py::arg("hook") = false, py::arg("trace") = false, py::arg("priority") = 0)
      .def_readonly("id", &Request::id);

  py::class_<ScoreRequest>(m, "ScoreRequest", "Prompts as in a Request, and continuations to score.")
      .def(py::init([](std::vector<Prompt> prompts, std::vector<int> experts,
                       std::vector<std::vector<int64_t>> continuations, Rule rule) {
             return ScoreRequest{std::move(prompts), std::move(experts), std::move(rule), std::move(continuations)};
           }),
           py::arg("prompts"), py::arg("experts"), py::arg("continuations"), py::arg_v("rule", Rule(), "Rule()"));
}

}  // namespace

void bind_engine(py::module_& m) {
  bind_hooks(m);
  bind_results(m);
  bind_requests(m);
  py::class_<StepLoop>(m, "StepLoop", "Decodes all running sequences further at each step.")
      .def(py::init([](const std::vector<std::shared_ptr<Weights>>& models, FusionPlan plan, EngineOptions options,
                       const std::vector<std::vector<std::shared_ptr<Adapter>>>& adapters) {
             const Models weights = present<const Weights>(models);
             Adapters of_models;
             for (const auto& of_model : adapters) {
               of_models.push_back(present<const Adapter>(of_model));
             }
             const auto make = options.devices.empty() ? cpu::make_step_loop : cuda::make_step_loop;
             return make(std::move(plan), weights, std::move(options), of_models);
           }),
           py::arg("models"), py::arg("plan"), py::arg("options"),
           py::arg("adapters") = std::vector<std::vector<std::shared_ptr<Adapter>>>())
      .def("add", &StepLoop::add, py::arg("request"), "Queues a request.")
      .def("cancel", &StepLoop::cancel, py::arg("id"), "Ends a request and frees its slot; unknown ids are ignored.")
      .def("step", &step, py::arg("hook") = py::none(), py::arg("masks") = py::none(),
           "Decodes every running sequence one token further, or more if tokens were drafted. Calls the hook with the "
           "logits of each request that has one; the request fails unless it returns True. Calls masks to write those "
           "that requests want.")
      .def("prepare", &StepLoop::prepare, py::call_guard<GilRelease>(),
           "Does some work, if the loop is idle, that would otherwise slow down a later step; returns whether there "
           "was any.")
      .def(
          "score",
          [](StepLoop& loop, ScoreRequest request, const std::optional<py::typing::Callable<void()>>& poll,
             const std::optional<PythonHook>& hook) {
            GilRelease unlocked;
            request.hook = as_hook(hook, unlocked);
            return loop.score(request, [&] {
              if (poll) {
                unlocked.call(*poll);
              }
            });
          },
          py::arg("request"), py::arg("poll") = py::none(), py::arg("hook") = py::none(),
          "Scores the continuations of a request, without advancing running sequences. Calls poll() now and then; an "
          "exception from it ends the scoring. Calls the hook as step() does.")
      .def_property_readonly("timings", [](const StepLoop& loop) { return loop.timings(); })
      .def_property_readonly("idle", &StepLoop::idle)
      .def_property_readonly("put_back", &StepLoop::put_back)
      .def_property_readonly("cache_use", &StepLoop::cache_use);
}

}  // namespace dlf
