#include "fusion/options.h"

#include <c10/util/Exception.h>

#include <cmath>

#include "support/option_error.h"

namespace dlf {
namespace {

constexpr double kMostAlpha = 1e6;  // so that float32 holds what it makes of any logit

}  // namespace

Combine parse_combine(std::string_view name) {
  if (name == "select") return Combine::select;
  if (name == "centroid") return Combine::centroid;
  if (name == "joint") return Combine::joint;
  if (name == "static") return Combine::static_alpha;
  if (name == "grid") return Combine::grid;
  throw OptionError("combine",
                    c10::str("combine is '", name, "'; it takes 'select', 'centroid', 'joint', 'static' or 'grid'"));
}

Match parse_match(std::string_view name) {
  if (name == "symmetric") return Match::symmetric;
  if (name == "forward") return Match::forward;
  if (name == "reverse") return Match::reverse;
  throw OptionError("match", c10::str("match is '", name, "'; it takes 'symmetric', 'forward' or 'reverse'"));
}

std::vector<ExpertWeight> expert_weights(const std::vector<std::optional<double>>& alpha,
                                         const std::vector<double>& alpha_max, int experts) {
  const auto count = static_cast<size_t>(experts);
  check_option(alpha.empty() || alpha.size() == count, "alpha", " holds ", alpha.size(), " weights for ", experts,
               " experts; give one an expert, None where it is solved");
  check_option(alpha_max.size() == 1 || alpha_max.size() == count, "alpha_max", " holds ", alpha_max.size(),
               " bounds for ", experts, " experts; give one for all or one an expert");
  std::vector<ExpertWeight> weights(count);
  for (size_t t = 0; t < count; ++t) {
    weights[t].alpha_max = alpha_max[alpha_max.size() == 1 ? 0 : t];
    weights[t].given = alpha.empty() ? std::nullopt : alpha[t];
  }
  return weights;
}

void validate(const FusionOptions& options, int experts) {
  TORCH_CHECK_VALUE(experts >= 1 && experts <= kMaxExperts, "got ", experts, " experts; give 1 to ", kMaxExperts);
  TORCH_CHECK_VALUE(options.weights.empty() || options.weights.size() == static_cast<size_t>(experts), "got ",
                    options.weights.size(), " weights for ", experts, " experts");
  check_option(options.combine != Combine::static_alpha || !options.weights.empty(), "combine",
               "='static' takes the weights: give alpha, one number an expert");
  for (size_t t = 0; t < options.weights.size(); ++t) {
    const ExpertWeight& weight = options.weights[t];
    check_option(weight.alpha_max > 0.0 && weight.alpha_max <= kMostAlpha, "alpha_max", " is ", weight.alpha_max,
                 " for expert ", t, "; give a finite number above 0, at most ", kMostAlpha);
    const double given = weight.given.value_or(0.0);
    check_option(std::abs(given) <= kMostAlpha, "alpha", "[", t, "] is ", given, "; give finite numbers of at most ",
                 kMostAlpha);
    check_option(options.combine != Combine::static_alpha || !weight.solved(), "combine", "='static' takes the ",
                 "weights as given, but expert ", t, " has none; give alpha, one number an expert");
  }
}

}  // namespace dlf
