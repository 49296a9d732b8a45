#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>

#include <optional>
#include <string>
#include <vector>

#include "bindings/bindings.h"
#include "bindings/gil.h"
#include "fusion/bad_model.h"
#include "fusion/cpu/solver.h"
#include "fusion/cuda/solve.h"
#include "support/option_error.h"

namespace dlf {
namespace {

namespace py = pybind11;

void check_logits(const at::Tensor& logits, const char* name, int64_t dimensions) {
  TORCH_CHECK_VALUE(logits.scalar_type() == at::kFloat && logits.is_contiguous() && logits.dim() == dimensions, name,
                    " must be a contiguous float32 tensor of ", dimensions, " dimensions");
}

// large [B, V], experts [B, T, V], bases [B, V] or [B, T, V]
void check_batch(const at::Tensor& large, const at::Tensor& experts, const at::Tensor& bases) {
  check_logits(large, "large", 2);
  check_logits(experts, "experts", 3);
  check_logits(bases, "base", bases.dim() == 2 ? 2 : 3);
  TORCH_CHECK_VALUE(experts.size(0) == large.size(0) && experts.size(2) == large.size(1) &&
                        bases.size(0) == large.size(0) && bases.size(-1) == large.size(1) &&
                        (bases.dim() == 2 || bases.size(1) == experts.size(1)),
                    "shapes don't fit: large ", large.sizes(), ", experts ", experts.sizes(), ", base ", bases.sizes());
}

// Checks that there is one rule for all rows, or one for each.
void check_rules(const std::vector<Rule>& rules, const at::Tensor& experts) {
  if (rules.size() != 1 && static_cast<int64_t>(rules.size()) != experts.size(0)) {
    throw OptionError("rule", c10::str("got ", rules.size(), " rules for ", experts.size(0),
                                       " rows; give one for all, or one per row"));
  }
  for (const Rule& rule : rules) {
    validate(rule, static_cast<int>(experts.size(1)));
  }
}

// Returns the results for Python; throws if a row could not be solved.
py::tuple checked(const FusionTensors& found) {
  for (int64_t row = 0; row < found.bad_model.size(0); ++row) {
    const int64_t bad = found.bad_model.const_data_ptr<int64_t>()[row];
    TORCH_CHECK_VALUE(bad != kEmptySupport, "row ", row, " leaves no token: every one is -inf in some model; ",
                      "leave at least one that all models allow");
    TORCH_CHECK_VALUE(bad == kNoBadModel, describe_bad_model(static_cast<int>(bad)), " in row ", row,
                      "; logits must be finite, or -inf for tokens that are ruled out");
  }
  return py::make_tuple(found.alpha, found.logits, found.f, found.g, found.target_f, found.target_g, found.sweeps);
}

py::tuple solve(const at::Tensor& large, const at::Tensor& experts, const at::Tensor& bases,
                const std::vector<Rule>& rules, int threads) {
  check_batch(large, experts, bases);
  check_rules(rules, experts);
  TORCH_CHECK_VALUE(large.is_cpu() && experts.is_cpu() && bases.is_cpu(), "the logits must be on the CPU");
  TORCH_CHECK_VALUE(threads >= 1, "threads is ", threads, "; give at least 1");
  const int64_t batch = large.size(0);
  const int64_t vocab = large.size(1);
  const int64_t count = experts.size(1);
  const bool shared = bases.dim() == 2;

  FusionTensors found(at::empty({batch, vocab}, at::kFloat), count);
  std::vector<const float*> pointers;
  std::vector<FusionInput> inputs;
  std::vector<FusionResult> results;
  {
    const GilRelease unlocked;
    pointers.resize(2 * batch * count);
    for (int64_t row = 0; row < batch; ++row) {
      const float** row_experts = &pointers[2 * row * count];
      const float** row_bases = row_experts + count;
      for (int64_t t = 0; t < count; ++t) {
        row_experts[t] = experts.const_data_ptr<float>() + (row * count + t) * vocab;
        row_bases[t] = bases.const_data_ptr<float>() + (shared ? row : row * count + t) * vocab;
      }
      inputs.push_back({large.const_data_ptr<float>() + row * vocab, row_experts, row_bases,
                        &rules[rules.size() == 1 ? 0 : row], static_cast<int>(count)});
      results.push_back({found.alpha.mutable_data_ptr<double>() + row * count,
                         found.target_f.mutable_data_ptr<double>() + row * count,
                         found.target_g.mutable_data_ptr<double>() + row * count,
                         found.logits.mutable_data_ptr<float>() + row * vocab, 0.0, 0.0, 0, kNoBadModel, true});
    }
    ThreadTeam team(threads);
    FusionSolver solver(static_cast<int>(count), vocab, static_cast<int>(batch), team);
    solver.solve(inputs, results);
    for (int64_t row = 0; row < batch; ++row) {
      found.f.mutable_data_ptr<double>()[row] = results[row].f;
      found.g.mutable_data_ptr<double>()[row] = results[row].g;
      found.sweeps.mutable_data_ptr<int64_t>()[row] = results[row].sweeps;
      found.bad_model.mutable_data_ptr<int64_t>()[row] = results[row].bad_model;
    }
  }
  return checked(found);
}

// Solves on a CUDA device; the logits may be on any.
py::tuple solve_cuda(const at::Tensor& large, const at::Tensor& experts, const at::Tensor& bases,
                     const std::vector<Rule>& rules, int device) {
  check_batch(large, experts, bases);
  check_rules(rules, experts);
  const FusionTensors found = [&] {
    const GilRelease unlocked;
    return solve_on_cuda(large, experts, bases, rules, device);
  }();
  return checked(found);
}

template <typename Table>
py::tuple names(const Table& table) {
  py::tuple found(table.size());
  for (size_t i = 0; i < table.size(); ++i) {
    found[i] = py::str(table[i].name.data(), table[i].name.size());
  }
  return found;
}

}  // namespace

void bind_fusion(py::module_& m) {
  py::class_<Rule>(m, "Rule", "How the weights of a request's experts are found.")
      .def(py::init([](const std::string& combine, const std::string& match,
                       const std::vector<std::optional<double>>& alpha, const std::vector<double>& alpha_max,
                       int experts, const std::vector<std::optional<double>>& mix, double large_weight,
                       double plausibility, const std::string& gate, double gate_threshold) {
             return parse_rule(
                 {combine, match, alpha, alpha_max, mix, large_weight, plausibility, gate, gate_threshold}, experts);
           }),
           py::arg("combine"), py::arg("match"), py::arg("alpha"), py::arg("alpha_max"), py::arg("experts"),
           py::kw_only(), py::arg("mix") = std::vector<std::optional<double>>(), py::arg("large_weight") = 1.0,
           py::arg("plausibility") = 0.0, py::arg("gate") = "none", py::arg("gate_threshold") = 0.0,
           "The rule for `experts` experts: `alpha` is empty, or has a weight or None for each; `alpha_max` has one "
           "bound, or one for each; `mix` is empty, or has a share or None for each.")
      .def(py::init<>(), "The rule \"select\" for any number of experts, with solved weights.")
      .def_property_readonly(
          "takes_given", [](const Rule& rule) { return rule.takes_given(); }, "Whether all weights are given.")
      .def_property_readonly(
          "bounds",
          [](const Rule& rule) {
            std::vector<std::optional<double>> bounds;
            bounds.reserve(rule.weights.size());
            for (size_t t = 0; t < rule.weights.size(); ++t) {
              bounds.push_back(rule.bound(t));
            }
            return bounds;
          },
          "Largest weight that each expert can get, None if the weight is given.");
  m.attr("MAX_EXPERTS") = kMaxExperts;
  m.attr("COMBINES") = names(kCombineTable);
  m.attr("MATCHES") = names(kMatchTable);
  m.attr("GATES") = names(kGateTable);

  m.def(
      "fusion_solve", &solve, py::arg("large"), py::arg("experts"), py::arg("bases"), py::arg("rules"),
      py::arg("threads"),
      "Fuses float32 logits, by one rule for all rows or one for each. Returns alpha, logits, f, g, target_f, target_g "
      "and sweeps.");
  m.def("cuda_fusion_solve", &solve_cuda, py::arg("large"), py::arg("experts"), py::arg("bases"), py::arg("rules"),
        py::arg("device"), "fusion_solve on a CUDA device; the fused logits stay there.");
}

}  // namespace dlf
